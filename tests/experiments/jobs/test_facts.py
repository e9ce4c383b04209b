"""Questions are found in documents, asked right behind their passages, and judged whole."""

import re
import types

import jax
import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.text.tokenizer import Tokenizer
from experiments.configs import tiny
from experiments.jobs import facts
from tests import fast_tokenizers

_CHUNK_LEN, _NEIGHBOUR_LEN = 64, 128
_TEXTS = {
    "Arda": "Arda\n\nPopulation: total: 12,345 (2025 est.)\nArea: total: 678 sq km\n",
    "Borea": "Borea\n\nCoastline: 1,024 km\nMedian age: total: 31.5 years\n",
    "Cydon": "Cydon\n\nNothing is known. Population: total: 99,999\n",  # in mid-line
    "Deleted": "Deleted\n\nPopulation: total: 55,555\n",
    "": "Population: total: 77,777\n",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = fast_tokenizers.folder(
        tmp_path_factory.mktemp("t") / "decoder",
        fast_tokenizers.byte_level(),
        eos_token="<|endoftext|>",
    )
    return Tokenizer.load(folder)


class _Database:
    """A document a chunk; the text of Arda's is found for every question."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        titles = list(_TEXTS)
        tokens = [tokenizer.encode(text) for text in _TEXTS.values()]
        self._tokens_TM = np.full((len(tokens), _NEIGHBOUR_LEN), tokenizer.pad_id)
        self._lengths = [len(each) for each in tokens]
        for row, each in zip(self._tokens_TM, tokens, strict=True):
            row[: len(each)] = each
        ids = [f"{title}.txt" for title in titles]
        self.snapshot = types.SimpleNamespace(
            documents=lambda split: pa.table({"id": ids, "title": titles}),
            document_of_chunk=np.arange(len(titles)),
            state=types.SimpleNamespace(is_deleted=lambda rows: rows == 3),
            chunks=lambda: types.SimpleNamespace(
                take=lambda _, ids: self._tokens_TM[ids]
            ),
        )

    def retrieve(self, tokens_QM, num_neighbours):
        lengths_QN = np.zeros((1, num_neighbours), np.int32)
        lengths_QN[0, 0] = self._lengths[0]
        tokens_QNR = np.zeros((1, num_neighbours, _NEIGHBOUR_LEN), np.int32)
        tokens_QNR[0, 0] = self._tokens_TM[0]
        return types.SimpleNamespace(tokens_QNR=tokens_QNR, lengths_QN=lengths_QN)


def test_questions_are_what_documents_state(tokenizer):
    found = facts.questions(_Database(tokenizer), 80, 0)
    assert {(each.document_id, each.answer) for each in found} == {
        ("Arda.txt", "12,345"),
        ("Arda.txt", "678"),
        ("Borea.txt", "1,024"),
        ("Borea.txt", "31.5"),
    }
    assert "Arda\n\nThe population of Arda is" in {each.prompt for each in found}
    assert len(facts.questions(_Database(tokenizer), 3, 0)) == 3
    assert found == facts.questions(_Database(tokenizer), 80, 0)


def test_another_number_differs_in_every_digit():
    for number in ("12,345", "67.890"):
        other = facts.other_number(number)
        assert re.sub(r"\d", "0", other) == re.sub(r"\d", "0", number)
        assert all(a != b for a, b in zip(number, other, strict=True) if a.isdigit())


def _answered(monkeypatch, tokenizer, answer):
    """Shares that are right if the likeliest tokens are `answer`'s of rows' texts."""
    cfg = tiny.get_config()
    cfg.evaluation.batch_size, cfg.evaluation.num_facts = 2, 80
    asked = []

    def likeliest(_cfg, _params, _mesh, batch):
        asked.append(batch)
        return answer(batch)

    monkeypatch.setattr(facts.evaluation, "likeliest_tokens", likeliest)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    return facts.measure(cfg, {}, mesh, _Database(tokenizer)), asked


def test_only_what_a_passage_states_is_asked(monkeypatch, tokenizer):
    """And an answer counts only if all of its tokens are the likeliest."""

    def next_tokens(batch):
        return np.roll(batch["inputs_BL"], -1, axis=1)

    found, asked = _answered(monkeypatch, tokenizer, next_tokens)
    assert (found["asked"], found["stated"]) == (4, 2)
    assert found["right"] == {"off": 1, "on": 1, "edited": 1}

    first = found["examples"][0]
    assert first["prompt"].startswith("Arda\n\nThe ")
    other = facts.other_number(first["answer"])
    assert first["said"] == {**dict.fromkeys(("off", "on"), first["answer"])} | {
        "edited": other
    }

    def last_is_wrong(batch):
        tokens_BL = next_tokens(batch)
        ends = (batch["segments_BL"] > 0).sum(axis=1)
        starts = np.argmax(batch["segments_BL"] > 0, axis=1)
        tokens_BL[np.arange(len(ends)), starts + ends - 2] = 5
        return tokens_BL

    found, _ = _answered(monkeypatch, tokenizer, last_is_wrong)
    assert found["right"] == {"off": 0, "on": 0, "edited": 0}
    wrong = found["examples"][0]
    assert wrong["said"]["on"].endswith("…")
    assert wrong["said"]["on"].startswith(wrong["answer"][:-2])
    off, on, edited = asked
    assert not off["neighbour_lengths_BCN"].any()
    for batch, number in ((on, "12,345"), (edited, facts.other_number("12,345"))):
        row = tokenizer.decode(batch["neighbours_BCNR"][0, 0, 0])
        assert f"Population: total: {number} " in row
        # The question ends with the first chunk, whose passages the answer reads.
        texts = {tokenizer.decode(tokens_L) for tokens_L in batch["inputs_BL"]}
        assert f"Arda\n\nThe population of Arda is {number}" in {
            text[text.index("Arda") :] for text in texts if "Arda" in text
        }
        assert not batch["neighbour_lengths_BCN"][:, 1].any()


def test_a_token_that_the_tokenizer_lacks_is_wrong_and_no_text(monkeypatch, tokenizer):
    def beyond(batch):
        return np.full_like(batch["inputs_BL"], tokenizer.vocab_size + 1)

    found, _ = _answered(monkeypatch, tokenizer, beyond)
    assert set(found["right"].values()) == {0}
    assert set(found["examples"][0]["said"].values()) == {"…"}


def test_nothing_stated_is_no_share(monkeypatch, tokenizer):
    monkeypatch.setattr(facts, "questions", lambda *_: [])
    found, asked = _answered(monkeypatch, tokenizer, None)
    assert found == {"asked": 0, "stated": 0, "right": {}, "examples": []}
    assert not asked
