"""Questions of fact that a document of the database answers: off, on and after an edit.

A greedy answer is the right one if the likeliest token is the right one at each of its
places, each behind the right ones before. So one pass over question and answer tells.

Letters here: Q questions.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from data_pipeline.database import Database
from data_pipeline.storage.progress import Progress
from data_pipeline.text.tokenizer import Tokenizer
from experiments.config import Experiment
from retro_jax import evaluation
from retro_jax.model import parameters

# A sentence to go on with, and how a document of the Factbook states what follows.
_FORMS = (
    ("The population of {} is", r"^Population: total: (\d[\d,]{3,})"),
    ("The total area of {} is", r"^Area: total: (\d[\d,]{2,})"),
    ("The length of the coastline of {} is", r"^Coastline: (\d[\d,.]{2,}) km"),
    ("The median age in {} is", r"^Median age: total: (\d[\d.]+)"),
)
_NUM_EXAMPLES = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A sentence that a document completes.

    Attributes:
        document_id: whose text states the answer.
        prompt: the sentence without its end.
        answer: as the document writes it.
    """

    document_id: str
    prompt: str
    answer: str


def questions(database: Database, most: int, seed: int) -> list[Question]:
    """Draws questions that documents of the database answer, in an order of their own.

    Only texts of the Factbook's form state facts in a way that is known here.
    """
    snapshot = database.snapshot
    documents, of_chunk = snapshot.documents("train"), snapshot.document_of_chunk
    rows_T = np.random.default_rng(seed).permutation(len(documents))
    found = []
    for row in rows_T[~snapshot.state.is_deleted(rows_T)]:
        document = documents.slice(int(row), 1).to_pylist()[0]
        tokens = snapshot.chunks().take("tokens", np.flatnonzero(of_chunk == row))
        text = database.tokenizer.decode(tokens.reshape(-1))
        for form, pattern in _FORMS:
            stated = re.search(pattern, text, re.MULTILINE)
            if stated and document["title"]:
                prompt = f"{document['title']}\n\n{form.format(document['title'])}"
                found.append(Question(document["id"], prompt, stated[1]))
        if len(found) >= most:
            break
    return found[:most]


def measure(
    cfg: Experiment,
    params: parameters.Parameters,
    mesh: jax.sharding.Mesh,
    database: Database,
) -> dict:
    """Shares of right answers, as JSON; of questions whose passages state the answer.

    'edited' counts answers that follow a passage in which the number is another.
    """
    asked = questions(database, cfg.evaluation.num_facts, cfg.evaluation.seed)
    rows = [_row(cfg, database, question) for question in asked]
    stated = [row for row in rows if row is not None]
    said: dict[str, list[_Said]] = {"off": [], "on": [], "edited": []}
    with Progress("questions of fact", 3 * len(stated), "answers") as progress:
        for name, answers in said.items():
            for some in _batches(stated, cfg.evaluation.batch_size):
                batch = _batch(cfg, database.tokenizer, some, name)
                likeliest_BL = evaluation.likeliest_tokens(
                    cfg.model, params, mesh, batch
                )
                for row, tokens_L in zip(some, likeliest_BL, strict=False):
                    told_L = tokens_L[cfg.model.chunk_len - 1 :].tolist()
                    answers.append(_said(database, told_L, row.answer_of(name)))
                progress.advance(len(some))
    return {
        "asked": len(asked),
        "stated": len(stated),
        "right": {
            name: float(np.mean([each.is_right for each in answers]))
            for name, answers in said.items()
            if answers
        },
        "examples": [
            {
                "prompt": row.question.prompt,
                "answer": row.question.answer,
                "edited_answer": other_number(row.question.answer),
                "said": {name: answers[place].text for name, answers in said.items()},
            }
            for place, row in enumerate(stated[:_NUM_EXAMPLES])
        ],
    }


class _Said(NamedTuple):
    """What is answered: whole if it is right, else up to the first wrong token."""

    is_right: bool
    text: str


def _said(database: Database, told: list[int], answer: list[int]) -> _Said:
    """Judges the likeliest tokens; what comes behind a wrong one would not be said."""
    right = [ours == theirs for ours, theirs in zip(told, answer, strict=False)]
    if all(right):
        return _Said(True, database.tokenizer.decode(answer).strip())
    until_wrong = told[: right.index(False) + 1]
    # A decoder may embed more tokens than there are; the others are no text.
    known = [token for token in until_wrong if token < database.tokenizer.vocab_size]
    text = database.tokenizer.decode(known)
    return _Said(False, f"{text.strip()}\N{HORIZONTAL ELLIPSIS}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    """A question, its passages as found and as edited, in tokens."""

    question: Question
    prompt: list[int]
    answer: list[int]
    edited_answer: list[int]
    passages: list[list[int]]
    edited_passages: list[list[int]]

    def answer_of(self, condition: str) -> list[int]:
        return self.edited_answer if condition == "edited" else self.answer

    def passages_of(self, condition: str) -> list[list[int]]:
        return {"off": [], "on": self.passages, "edited": self.edited_passages}[
            condition
        ]


def _row(cfg: Experiment, database: Database, question: Question) -> _Row | None:
    """Looks for passages; None if none of them states the answer."""
    tokenizer, chunk_len = database.tokenizer, cfg.model.chunk_len
    prompt = tokenizer.encode(question.prompt).tolist()[-chunk_len:]
    found = database.retrieve(np.array([prompt], np.int32), cfg.data.num_neighbours)
    passages = [
        tokens_R[:length].tolist()
        for tokens_R, length in zip(
            found.tokens_QNR[0], found.lengths_QN[0], strict=True
        )
        if length
    ]
    texts = [tokenizer.decode(tokens) for tokens in passages]
    if not any(question.answer in text for text in texts):
        return None
    edited = other_number(question.answer)
    return _Row(
        question,
        prompt,
        tokenizer.encode(f" {question.answer}").tolist(),
        tokenizer.encode(f" {edited}").tolist(),
        passages,
        [
            tokenizer.encode(text.replace(question.answer, edited)).tolist()
            for text in texts
        ],
    )


def other_number(number: str) -> str:
    """A number of the same form, each of whose digits is another; the same each time."""
    turned = str.maketrans("0123456789", "5738291640")
    return number.translate(turned)


def _batches(rows: list[_Row], size: int) -> Iterator[list[_Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _batch(
    cfg: Experiment, tokenizer: Tokenizer, rows: list[_Row], condition: str
) -> dict[str, np.ndarray]:
    """Questions and answers as the model reads them; the last rows may be padding."""
    chunk_len, size = cfg.model.chunk_len, cfg.evaluation.batch_size
    shape = (size, 2, cfg.data.num_neighbours)
    inputs_BL = np.zeros((size, 2 * chunk_len), np.int32)
    segments_BL = np.zeros_like(inputs_BL)
    neighbours = np.zeros((*shape, cfg.model.neighbour_len), np.int32)
    lengths = np.zeros(shape, np.int32)
    for place, row in enumerate(rows):
        # The question ends with a chunk, whose passages its last token reads.
        text = row.prompt + row.answer_of(condition)
        start = chunk_len - len(row.prompt)
        inputs_BL[place, start : start + len(text)] = text
        segments_BL[place, start : start + len(text)] = 1
        for number, passage in enumerate(row.passages_of(condition)):
            read = passage[: cfg.model.neighbour_len]
            neighbours[place, 0, number, : len(read)] = read
            lengths[place, 0, number] = len(read)
    return {
        "inputs_BL": inputs_BL,
        "segments_BL": segments_BL,
        "neighbours_BCNR": neighbours,
        "neighbour_lengths_BCN": lengths,
    }
