"""A continuation names what was read for it, and nothing else."""

import json

import numpy as np
import pytest

from experiments.jobs import continuations
from experiments.jobs.remote_database import NoDatabase
from retro_jax import generation
from tests import tiny_corpus
from tests.tiny_run import experiment


@pytest.fixture
def cfg(tiny_corpus_folder):
    return experiment(tiny_corpus_folder)


def _source(start: int, stop: int, *chunk_ids: int, **more) -> generation.Source:
    return generation.Source(
        start=start,
        stop=stop,
        chunk_ids_N=np.array(chunk_ids),
        distances_N=np.linspace(0.1, 0.2, len(chunk_ids)),
        **more,
    )


def _made(tokens=(), sources=(), finish="length") -> list[generation.Generated]:
    """What generation gives for one prompt; each token has a log-probability of -1."""
    return [
        generation.Generated(
            tokens=np.array(tokens, np.int32),
            log_probs=-np.ones(len(tokens), np.float32),
            sources=list(sources),
            finish=finish,
        )
    ]


def test_sources_are_those_that_new_tokens_read(cfg, tiny_database, monkeypatch):
    prompt_len = len(tiny_database.tokenizer.encode(tiny_corpus.PLANTED))
    found = tiny_database.found(5)
    said = (found.text + found.continuation)[3:40]
    tokens = tiny_database.tokenizer.encode("the quiet observatory " + said)
    evidence = {
        "attention_N": np.array([0.25, 0.75]),
        "effects_N": np.array([-0.5, 2.25]),
    }
    made = _made(
        tokens,
        [
            _source(0, prompt_len, 1, 2),  # read for the prompt alone
            _source(prompt_len - 3, prompt_len + 1, 3, -1),  # the second is absent
            _source(prompt_len + 1, prompt_len + len(tokens), 4, 5, **evidence),
        ],
    )
    monkeypatch.setattr(generation, "generate", lambda *_, **__: made)
    sample = continuations.continuation(cfg, {}, tiny_database, tiny_corpus.PLANTED)
    assert sample["text"].strip() == ("the quiet observatory " + said).strip()
    assert [source["chunk_id"] for source in sample["sources"]] == [3, 4, 5]
    assert sample["sources"][0]["distance"] == pytest.approx(0.1)
    lines: list[str] = []
    continuations.print_continuation(sample, lines.append)
    assert tiny_corpus.PLANTED in lines[0] and "the quiet observatory" in lines[0]
    numbered = [line for line in lines if line.startswith("[")]
    ids = [source["document_id"] for source in sample["sources"]]
    assert [line.split()[:2] for line in numbered] == [
        [f"[{number}]", name] for number, name in enumerate(ids, start=1)
    ]
    assert "distance 0.100" in lines[2] and "attention" not in lines[2]
    first, second = sample["chunks"]
    assert first["log_prob"] == -1 and second["log_prob"] == 1 - len(tokens)
    assert said.strip() in second["sources"][1]["verbatim"]
    assert json.loads(json.dumps(sample))["chunks"][1]["sources"][1]["effect"] == 2.25
    assert "attention 75%, effect +2.25 nats, word for word: " in lines[-2]


def test_without_sources_it_is_said(capsys):
    sample = {"prompt": "a", "text": "b", "sources": [], "chunks": []}
    sample["retrieval"] = True
    continuations.print_continuation(sample, print)
    assert "(no sources: nothing was retrieved)" in capsys.readouterr().out


def test_a_service_that_is_away_is_named(cfg, tiny_database, monkeypatch):
    prompt_len = len(tiny_database.tokenizer.encode(tiny_corpus.PLANTED))
    problem = "grpc://x: no\x1b[2Janswer"
    away = _source(prompt_len, prompt_len + 1, -1, problem=problem)
    monkeypatch.setattr(generation, "generate", lambda *_, **__: _made([7], [away]))
    sample = continuations.continuation(cfg, {}, tiny_database, tiny_corpus.PLANTED)
    lines: list[str] = []
    continuations.print_continuation(sample, lines.append)
    assert "(went on without passages: grpc://x: no\ufffd[2Janswer)" in lines


def test_a_text_ends_before_what_ends_it(cfg, tiny_database, monkeypatch):
    """Wherever its tokens begin and end."""
    tokenizer = tiny_database.tokenizer
    tokens = tokenizer.encode("the quiet observatory of the northern hills")
    cfg.evaluation.stop = ("never", "vatory of")

    def generate(*_, stop, **__):
        for size in range(1, len(tokens) + 1):
            if stop(tokens[:size]) is not None:
                assert stop(tokens) == stop(tokens[:size]) == size
                return _made(tokens[:size], finish="stop")
        return None

    monkeypatch.setattr(generation, "generate", generate)
    sample = continuations.continuation(cfg, {}, tiny_database, tiny_corpus.PLANTED)
    assert sample["text"].strip() == "the quiet obser" and sample["finish"] == "stop"


def test_held_out_text_starts_in_the_middle_of_its_document(
    cfg, tiny_database, monkeypatch
):
    prompts: list[str] = []

    def continue_(cfg, params, database, prompt, limits):
        prompts.append(prompt)
        return {"prompt": prompt}

    monkeypatch.setattr(continuations, "continuation", continue_)
    cfg.evaluation.num_samples = 2
    samples = list(continuations.of_held_out(cfg, {}, tiny_database))
    assert len(samples) == len({sample["document"]["id"] for sample in samples}) == 2
    texts = tiny_corpus.texts()
    for sample, prompt in zip(samples, prompts, strict=True):
        text = texts[sample["document"]["id"]]
        assert prompt + sample["truth"] in text
        assert text.index(prompt) > 0


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_refused(cfg, tiny_database, prompt):
    with pytest.raises(ValueError, match="no prompt: retro generate"):
        continuations.continuation(cfg, {}, tiny_database, prompt)


def test_with_retrieval_off_the_tokenizer_is_enough_and_it_is_said(
    cfg, tiny_database, monkeypatch
):
    cfg.evaluation.retrieval = False
    seen = []

    def generate(cfg, params, tokens, retriever, **options):
        seen.append(retriever)
        return _made()

    monkeypatch.setattr(generation, "generate", generate)
    for database in (tiny_database, NoDatabase(tiny_database.tokenizer)):
        sample = continuations.continuation(cfg, {}, database, tiny_corpus.PLANTED)
        lines: list[str] = []
        continuations.print_continuation(sample, lines.append)
        assert lines[-1] == "(no sources: retrieval is off, by evaluation.retrieval)"
    assert seen == [None, None]
