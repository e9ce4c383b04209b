"""A real model, small and random, with the tiny database, as a client of it sees them."""

import concurrent.futures
import json

import numpy as np
import pytest
from starlette.testclient import TestClient

from experiments.serving import app
from experiments.serving.opening import Settings, served
from retro_jax.generation import generate
from retro_jax.model import parameters
from tests import tiny_corpus
from tests.tiny_run import experiment

_PROMPT = tiny_corpus.PLANTED[:20]
_ASKED = {"prompt": _PROMPT, "max_tokens": 10, "temperature": 0}


@pytest.fixture(scope="module")
def cfg(tiny_corpus_folder, tiny_database):
    made = experiment(tiny_corpus_folder)
    made.set_vocab_size(tiny_database.tokenizer.vocab_size)
    return made


@pytest.fixture(scope="module")
def params(cfg):
    return parameters.initial_parameters(cfg.model, 0)


@pytest.fixture(scope="module")
def client(cfg, params, tiny_database):
    settings = Settings(
        name="tiny", max_tokens=20, max_batch=2, hosts={"testserver"}, key="secret"
    )
    application = app.application(served(cfg, params, tiny_database, settings))
    headers = {"Authorization": "Bearer secret"}
    with TestClient(application, headers=headers) as made:
        yield made


def test_a_text_is_that_of_generation_with_its_sources(
    client, cfg, params, tiny_database
):
    tokenizer = tiny_database.tokenizer
    tokens = tokenizer.encode(_PROMPT)
    (alone,) = generate(
        cfg.model,
        params,
        [tokens],
        tiny_database,
        num_tokens=10,
        window_chunks=cfg.data.sequence_chunks,
        num_neighbours=cfg.data.num_neighbours,
        eod_id=-1,
        vocab_size=tokenizer.vocab_size,
    )
    answer = client.post("/v1/completions", json=_ASKED | {"ignore_eos": True})
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    # Half a character at the end is not shown.
    said = tokenizer.decode(alone.tokens)
    assert choice["text"].rstrip("\ufffd") == said.rstrip("\ufffd")
    read = [source for source in alone.sources if source.stop > len(tokens)]
    for span, source in zip(choice["sources"], read, strict=True):
        told = [passage["chunk_id"] for passage in span["passages"]]
        assert told == [chunk for chunk in source.chunk_ids_N if chunk >= 0]
        shares = [passage["attention"] for passage in span["passages"]]
        np.testing.assert_allclose(sum(shares), 1, atol=1e-4)


def _streamed(client, body: dict) -> list[dict]:
    """The choices of a stream."""
    answer = client.post("/v1/completions", json=body | {"stream": True})
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line)["choices"][0] for line in lines[:-1]]


def test_streams_of_several_clients_say_what_whole_answers_say(client):
    """Tokens come in small groups; the text, its end and its sources are the same."""
    asked = [
        _ASKED | {"prompt": _PROMPT[:length], "max_tokens": 20, "ignore_eos": True}
        for length in (20, 7, 11)
    ]
    whole = [client.post("/v1/completions", json=body).json() for body in asked]
    stops = [answer["choices"][0]["text"][9:12] for answer in whole]
    asked += [body | {"stop": stop} for body, stop in zip(asked, stops, strict=True)]
    whole += [client.post("/v1/completions", json=body).json() for body in asked[3:]]
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        streams = [*pool.map(lambda body: _streamed(client, body), asked)]
    num_shown = num_spans = 0
    for answer, pieces, body in zip(whole, streams, asked, strict=True):
        (choice,) = answer["choices"]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
        assert (choice["finish_reason"] == "stop") == ("stop" in body)
        spans = [span for piece in pieces for span in piece.get("sources", [])]
        assert [(span["start"], span["end"]) for span in spans] == [
            (span["start"], span["end"]) for span in choice["sources"]
        ]
        assert spans and spans[-1]["end"] == len(choice["text"])
        num_shown += sum(bool(piece["text"]) for piece in pieces)
        num_spans += len(spans)
    assert num_shown > num_spans  # not chunk by chunk


def test_retrieval_off_reads_nothing(client):
    answer = client.post("/v1/completions", json=_ASKED | {"retrieval": False})
    assert answer.json()["choices"][0]["sources"] == []


def test_what_is_served_is_told(client, cfg, tiny_database):
    told = client.get("/health").json()
    assert told["status"] == "ok" and told["model"] == "tiny"
    assert told["window_tokens"] == cfg.data.sequence_chunks * cfg.model.chunk_len
    assert told["database"]["fingerprint"] == tiny_database.fingerprint
    assert told["documents_enabled"] is False
    wrong = client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
    assert wrong.status_code == 401
