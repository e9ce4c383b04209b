"""Questions are found in held-out documents, asked behind what is found, and judged whole."""

import contextlib
import re
import types

import jax
import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.text.tokenizer import Tokenizer
from experiments.configs import tiny
from experiments.jobs import facts, reading
from tests import fast_tokenizers

_CHUNK_LEN, _NEIGHBOUR_LEN = 64, 128
_TEXTS = {
    "Arda": "Population of Arda: total: 12,345 (2025 est.)\n\nArea of Arda: total: 678 sq km\n",
    "Borea": "Coastline of Borea: 1,024 km\n\nMedian age of Borea: total: 31.5 years\n",
    "Cydon": "The Population of Cydon: total: 99,999\n",  # in mid-line
    "Deleted": "Population of it: total: 55,555\n",
    "": "Population of it: total: 77,777\n",
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
    """A document a chunk; what was added of Arda, if anything, is found for every question."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        tokens = [tokenizer.encode(text) for text in _TEXTS.values()]
        tokens_TM = np.full((len(tokens), _NEIGHBOUR_LEN), tokenizer.pad_id)
        for row, each in zip(tokens_TM, tokens, strict=True):
            row[: len(each)] = each
        ids = [f"{title}.txt" for title in _TEXTS]
        columns = {"id": ids, "title": list(_TEXTS), "uri": ids, "licence": ids}
        self.snapshot = types.SimpleNamespace(
            documents=lambda split: {"test": pa.table(columns)}[split],
            has_document=lambda name, split: name != "Deleted.txt" and split == "test",
            chunks=lambda split: types.SimpleNamespace(
                column=lambda _: np.arange(len(ids)),
                take=lambda _, ids: {"test": tokens_TM}[split][ids],
            ),
        )
        self.found: list[str] = []

    def add(self, documents):
        self.found = [each["text"] for each in documents if each["title"] == "Arda"]

    replace = add

    def retrieve(self, tokens_QM, num_neighbours):
        lengths_QN = np.zeros((1, num_neighbours), np.int32)
        tokens_QNR = np.zeros((1, num_neighbours, _NEIGHBOUR_LEN), np.int32)
        for text in self.found:
            tokens = self.tokenizer.encode(text)
            tokens_QNR[0, 0, : len(tokens)] = tokens
            lengths_QN[0, 0] = len(tokens)
        return types.SimpleNamespace(
            tokens_QNR=tokens_QNR,
            lengths_QN=lengths_QN,
            chunk_ids_QN=np.zeros_like(lengths_QN),
            distances_QN=np.full(lengths_QN.shape, 0.5, np.float32),
        )


def _questions(tokenizer, most=80):
    return facts.documents_that_state(_Database(tokenizer), most, 0)


def test_questions_are_what_held_out_documents_state(tokenizer):
    documents, found = _questions(tokenizer)
    assert {(each.document_id, each.answer) for each in found} == {
        ("Arda.txt", "12,345"),
        ("Arda.txt", "678"),
        ("Borea.txt", "1,024"),
        ("Borea.txt", "31.5"),
    }
    assert "Arda\n\nPopulation of Arda: total:" in {each.prompt for each in found}
    assert "Arda\n\nThe population of Arda is" in {each.sentence for each in found}
    assert {each["id"]: each["text"] for each in documents}["Arda.txt"].startswith(
        _TEXTS["Arda"]
    )
    assert len(_questions(tokenizer, 3)[1]) == 3
    assert _questions(tokenizer) == (documents, found)


def test_another_number_differs_in_every_digit():
    for number in ("12,345", "67.890"):
        other = facts.other_number(number)
        assert re.sub(r"\d", "0", other) == re.sub(r"\d", "0", number)
        assert all(a != b for a, b in zip(number, other, strict=True) if a.isdigit())


def test_an_edit_changes_whole_numbers_of_its_document_alone():
    asked = [facts.Question("a", "", "", "678"), facts.Question("b", "", "", "55")]
    text = "678 and 1,678 and 678.5 and 6789, but 678. And 55"
    edited = facts._edited({"id": "a", "text": text}, asked)["text"]
    other = facts.other_number("678")
    assert edited == f"{other} and 1,678 and 678.5 and 6789, but {other}. And 55"


def _measured(monkeypatch, tokenizer, says, limits=reading.ALL):
    """What is measured if a model says `says(text of passages)` to every question."""
    cfg = tiny.get_config()
    cfg.evaluation.batch_size, cfg.evaluation.num_facts = 3, 80
    batches = []

    def likeliest(_cfg, _params, _mesh, batch, encodings):
        batches.append(batch)
        told_BL = np.zeros_like(batch["inputs_BL"])
        for row, (inputs_L, segments_L) in enumerate(
            zip(batch["inputs_BL"], batch["segments_BL"], strict=True)
        ):
            if not segments_L.any():
                continue
            text = tokenizer.decode(inputs_L[segments_L > 0])
            passages = text
            if "neighbours_BCNR" in batch:
                lengths_N = batch["neighbour_lengths_BCN"][row, 0]
                tokens_NR = batch["neighbours_BCNR"][row, 0]
                passages = tokenizer.decode(tokens_NR[0, : lengths_N[0]])
            said = tokenizer.encode(says(passages, text)).tolist()
            end = len(segments_L) - facts._ROOM
            told_BL[row, end - 1 : end - 1 + len(said)] = said[: facts._ROOM + 1]
        return told_BL

    monkeypatch.setattr(facts.evaluation, "likeliest_tokens", likeliest)
    monkeypatch.setattr(
        facts, "_copied", lambda database, scratch: contextlib.nullcontext(database)
    )
    asking = facts.Asking(
        cfg=cfg,
        params={},
        mesh=jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",)),
        tokenizer=tokenizer,
        limits=limits,
    )
    return facts.measure(asking, _Database(tokenizer), None), batches


def _copies(passages, text):
    """Reads the number of the passage that the question is about."""
    asked = text.rpartition("\n\n")[2]
    field = "Population" if "opulation" in asked else "Area"
    stated = re.search(rf"{field} of Arda: total: ([\d,]+)", passages)
    return f" about {stated[1]} (est" if stated else " about 1 million"


def test_answers_follow_what_the_documents_state(monkeypatch, tokenizer):
    found, batches = _measured(monkeypatch, tokenizer, _copies)
    assert (found["asked"], found["stated"], found["documents"]) == (4, 2, 2)
    right = {"off": 0, "before": 0, "on": 1, "prompt": 1, "edited": 1, "sentence": 1}
    assert found["right"] == right and set(found["counts"].values()) == {2}
    first = found["examples"][0]
    assert first["prompt"].startswith("Arda\n\n")
    assert first["said"]["off"] == "about 1"
    assert first["said"]["on"].startswith(f"about {first['answer']}")
    assert first["said"]["edited"].startswith(f"about {first['edited_answer']}")
    # The tokens of " about" one by one, then the number at once.
    assert len(batches) <= 6 * (len(tokenizer.encode(" about")) + 1)


@pytest.mark.parametrize(
    ("said", "is_right"),
    [
        (" 12,345 people", True),
        (" 12,345.", True),
        (" 12,346", False),
        (" 12,34 people", False),
        (" 12,3456", False),
        (" 3 or 12,345", False),
        (" unknown" * 20, False),
    ],
)
def test_the_first_number_is_the_answer(monkeypatch, tokenizer, said, is_right):
    found, _ = _measured(
        monkeypatch,
        tokenizer,
        lambda passages, text: said if "opulation" in text else " no",
    )
    assert found["right"]["on"] == is_right / 2


def test_what_is_too_far_is_not_read(monkeypatch, tokenizer):
    near = reading.Limits(max_distance=0.4)
    found, batches = _measured(monkeypatch, tokenizer, _copies, near)
    assert (found["asked"], found["stated"], found["right"]) == (4, 0, {})
    assert not batches


def test_a_token_that_the_tokenizer_lacks_is_wrong_and_no_text(tokenizer):
    said = facts._Said()
    while not said.is_over:
        draft = said.draft(tokenizer, "12")
        said.hear(tokenizer, draft, [tokenizer.vocab_size + 1] * (len(draft) + 1))
        said.judge("12")
    assert (said.is_right, said.text) == (False, "")


def test_nothing_stated_is_no_share(monkeypatch, tokenizer):
    monkeypatch.setattr(facts, "documents_that_state", lambda *_: ([], []))
    found, batches = _measured(monkeypatch, tokenizer, _copies)
    assert found == {"asked": 0, "stated": 0, "right": {}, "examples": []}
    assert not batches


def test_a_copy_changes_and_the_database_does_not(
    tiny_database, toy_embedder, tmp_path
):
    before = {
        path: path.read_bytes()
        for path in tiny_database.folder.rglob("*")
        if path.is_file()
    }
    fingerprint = tiny_database.fingerprint
    with facts._copied(tiny_database, tmp_path) as copy:
        copy.add([{"id": "new", "text": "The sea of Arda is deep."}])
        copy.replace([{"id": "new", "text": "The sea of Arda is shallow."}])
        (found,) = copy.search(["The sea of Arda"], 1)
        assert found[0].continuation.startswith(" Arda is s")
        assert len(found) == 1
        assert copy.fingerprint != fingerprint
    assert not list(tmp_path.iterdir())
    assert before == {path: path.read_bytes() for path in before}
    assert not tiny_database.beside().snapshot.has_document("new")
