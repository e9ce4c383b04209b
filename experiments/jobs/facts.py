"""Questions of fact, asked before and after the documents that state them come in and change.

Held-out documents are added to a copy of the database, questions are asked whose answers
these documents state, then every answer is exchanged in the documents and they are asked
again. Nothing is trained. The answer is the first number that the likeliest tokens spell.

Letters here: Q questions, A tokens of an answer.
"""

import contextlib
import copy
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from data_pipeline.database import Database
from data_pipeline.storage.progress import Progress
from data_pipeline.text.tokenizer import Tokenizer
from experiments.config import Experiment
from experiments.jobs import attribution, reading
from retro_jax import evaluation
from retro_jax.model import parameters
from retro_jax.training.batch import Batch
from retro_jax.training.encodings import Encodings

# How a document of the Factbook states a number, what stands before it, and a sentence
# that says the same in other words.
_FORMS = (
    (
        r"^Population of .*: total: (\d[\d,]{3,})",
        "Population of {}: total:",
        "The population of {} is",
    ),
    (
        r"^Area of .*: total: (\d[\d,]{2,})",
        "Area of {}: total:",
        "The total area of {} is",
    ),
    (
        r"^Coastline of .*: (\d[\d,.]{2,}) km",
        "Coastline of {}:",
        "The length of the coastline of {} is",
    ),
    (
        r"^Median age of .*: total: (\d[\d.]+)",
        "Median age of {}: total:",
        "The median age in {} is",
    ),
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_FREE_TOKENS = 12  # that may stand before the number ends, besides its own
_ROOM = 32  # tokens behind a question
_NUM_EXAMPLES = 3
_SPLIT = "test"


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A sentence that a document completes.

    Attributes:
        document_id: whose text states the answer.
        prompt: what stands before the answer there, behind the document's title.
        sentence: the same in other words.
        answer: as the document writes it.
    """

    document_id: str
    prompt: str
    sentence: str
    answer: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """A question with what the model reads for it, in tokens, and what counts as right."""

    question: Question
    prompt: list[int]
    answer: str
    passages: list[list[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
    """The model that is asked, and how it reads."""

    cfg: Experiment
    params: parameters.Parameters
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    encodings: Encodings | None = None
    limits: reading.Limits = reading.ALL


def documents_that_state(
    database: Database, most: int, seed: int
) -> tuple[list[dict], list[Question]]:
    """Draws held-out documents and the questions that they answer, in an order of its own.

    Only texts of the Factbook's form state facts in a way that is known here.
    """
    snapshot = database.snapshot
    table, chunks = snapshot.documents(_SPLIT), snapshot.chunks(_SPLIT)
    of_chunk = chunks.column("documents")
    documents: list[dict] = []
    found: list[Question] = []
    for row in np.random.default_rng(seed).permutation(len(table)):
        if len(found) >= most:
            break
        record = table.slice(int(row), 1).to_pylist()[0]
        if not record["title"] or not snapshot.has_document(record["id"], _SPLIT):
            continue
        tokens = chunks.take("tokens", np.flatnonzero(of_chunk == row))
        text = database.tokenizer.decode(tokens.reshape(-1))
        asked = list(_questions(record, text))
        if asked:
            fields = ("id", "title", "uri", "licence")
            documents.append({name: record[name] for name in fields} | {"text": text})
            found += asked
    return documents, found[:most]


def _questions(record: Mapping, text: str) -> Iterator[Question]:
    title = record["title"]
    for pattern, prompt, sentence in _FORMS:
        stated = re.search(pattern, text, re.MULTILINE)
        if stated:
            yield Question(
                document_id=record["id"],
                prompt=f"{title}\n\n{prompt.format(title)}",
                sentence=f"{title}\n\n{sentence.format(title)}",
                answer=stated[1],
            )


def measure(asking: Asking, database: Database, scratch: Path) -> dict:
    """Shares of right answers, as JSON; of questions whose passages state the answer.

    'off' reads nothing, 'before' what the database holds without the documents, 'on' what
    it holds with them, 'prompt' has those passages in the prompt. 'edited' counts answers
    that are the exchanged number, once the documents state that. All of these ask in the
    documents' words; 'sentence' reads as 'on' does and asks in others.

    Args:
        scratch: a folder on the database's disk, for the copy that is changed.
    """
    evaluated = asking.cfg.evaluation
    documents, asked = documents_that_state(
        database, evaluated.num_facts, evaluated.seed
    )
    if not asked:
        return {"asked": 0, "stated": 0, "right": {}, "examples": []}
    rows = _read(asking, database, documents, asked, scratch)
    wide = rows.pop("wide", [])
    said = {name: _answers(asking, name, some) for name, some in rows.items()}
    number = {document["id"]: row for row, document in enumerate(documents)}
    return {
        "asked": len(asked),
        "stated": len(rows["on"]),
        "documents": len(documents),
        "right": {
            name: float(np.mean([each.is_right for each in answers]))
            for name, answers in said.items()
            if answers
        },
        "intervals": {
            name: attribution.counted(
                [each.is_right for each in answers],
                [number[each.question.document_id] for each in rows[name]],
                evaluated.seed,
            )
            for name, answers in said.items()
        },
        **({"attribution": _attributed(asking, wide, number)} if wide else {}),
        "counts": {name: len(answers) for name, answers in said.items()},
        "examples": [
            {
                "prompt": each.question.prompt,
                "document": each.question.document_id,
                "answer": each.question.answer,
                "edited_answer": other_number(each.question.answer),
                "said": {
                    name: said[name][row].text.strip()
                    for name in ("off", "on", "edited")
                },
            }
            for row, each in enumerate(rows["on"][:_NUM_EXAMPLES])
        ],
    }


def _attributed(
    asking: Asking, rows: Sequence["_Asked"], number: Mapping[str, int]
) -> dict:
    """Whether attention tells which passage states an answer, as JSON."""
    reads = [
        attribution.Read(
            each.prompt,
            each.answer,
            number[each.question.document_id],
            each.passages,
            np.array(_stating(asking.tokenizer, each), bool),
        )
        for each in rows
    ]
    with Progress("effects of passages", len(reads), "questions") as progress:
        scored = attribution.scored(
            asking.cfg,
            asking.params,
            asking.tokenizer,
            reads,
            asking.encodings,
            advance=progress.advance,
        )
    return dict(attribution.summary(scored, asking.cfg.evaluation.seed))


def _read(
    asking: Asking,
    database: Database,
    documents: Sequence[Mapping],
    asked: Sequence[Question],
    scratch: Path,
) -> dict[str, list["_Asked"]]:
    """What is read for each question in each condition, where it states the answer.

    Conditions that are compared have the same questions; 'sentence' has its own.
    """

    def found(database: Database, *, edited: bool = False, sentence: bool = False):
        return [
            _asked(asking, database, each, edited=edited, sentence=sentence)
            for each in asked
        ]

    before = found(database)
    with _copied(database, scratch) as changed:
        changed.add(documents)
        after, sentences = found(changed), found(changed, sentence=True)
        wide = _with_more(asking, changed, asked)
        changed.replace([_edited(document, asked) for document in documents])
        edited = found(changed, edited=True)
    stated = [
        place
        for place in range(len(asked))
        if _states(asking.tokenizer, after[place])
        and _states(asking.tokenizer, edited[place])
    ]
    return {
        "off": [dataclasses.replace(after[place], passages=[]) for place in stated],
        "before": [before[place] for place in stated],
        "on": [after[place] for place in stated],
        "prompt": [after[place] for place in stated],
        "edited": [edited[place] for place in stated],
        "sentence": [each for each in sentences if _states(asking.tokenizer, each)],
        "wide": [wide[place] for place in stated if wide],
    }


def _with_more(
    asking: Asking, database: Database, asked: Sequence[Question]
) -> list["_Asked"]:
    """Questions with as many passages as are measured, if passages' effects are asked for."""
    cfg = copy.deepcopy(asking.cfg)
    if not cfg.evaluation.effects:
        return []
    cfg.data.num_neighbours = max(
        cfg.data.num_neighbours, *cfg.evaluation.neighbours, 0
    )
    wide = dataclasses.replace(asking, cfg=cfg)
    return [
        _asked(wide, database, each, edited=False, sentence=False) for each in asked
    ]


@contextlib.contextmanager
def _copied(database: Database, scratch: Path) -> Iterator[Database]:
    """A copy of a database that can be changed; it is gone in the end.

    What a database never writes over is linked where the disk can, and not copied.
    """

    def link(source: str, target: str) -> None:
        if source.endswith((".npy", ".arrow", ".parquet")):
            with contextlib.suppress(OSError):
                os.link(source, target)
                return
        shutil.copy2(source, target)

    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".facts-", dir=scratch) as folder:
        target = Path(folder) / "database"
        shutil.copytree(
            database.folder,
            target,
            copy_function=link,
            ignore=shutil.ignore_patterns("dataset"),
        )
        yield Database.open(target)


def _edited(document: Mapping, asked: Sequence[Question]) -> dict:
    """The document with other numbers where it states answers, everywhere in its text."""
    text = document["text"]
    for question in asked:
        if question.document_id == document["id"]:
            text = _exchanged(text, question.answer)
    return {**document, "text": text}


def _whole(number: str) -> re.Pattern:
    """Matches a number where it is no part of another."""
    return re.compile(rf"(?<![\d.,]){re.escape(number)}(?![\d]|[.,]\d)")


def _exchanged(text: str, number: str) -> str:
    return _whole(number).sub(other_number(number), text)


def other_number(number: str) -> str:
    """A number of the same form, each of whose digits is another; the same each time."""
    turned = str.maketrans("0123456789", "5738291640")
    return number.translate(turned)


def _asked(
    asking: Asking,
    database: Database,
    question: Question,
    *,
    edited: bool,
    sentence: bool,
) -> _Asked:
    """Looks for a question's passages in what a database holds now."""
    chunk_len = asking.cfg.model.chunk_len
    text = question.sentence if sentence else question.prompt
    answer = other_number(question.answer) if edited else question.answer
    prompt = asking.tokenizer.encode(text).tolist()[-chunk_len:]
    retriever = reading.NearRetriever(database, asking.limits)
    found = retriever.retrieve(
        np.array([prompt], np.int32), asking.cfg.data.num_neighbours
    )
    passages = [
        tokens_R[:length].tolist()[: asking.cfg.model.neighbour_len]
        for tokens_R, length in zip(
            found.tokens_QNR[0], found.lengths_QN[0], strict=True
        )
        if length
    ]
    return _Asked(question, prompt, answer, passages)


def _stating(tokenizer: Tokenizer, asked: _Asked) -> list[bool]:
    """Which of the passages state the answer."""
    pattern = _whole(asked.answer)
    return [bool(pattern.search(tokenizer.decode(each))) for each in asked.passages]


def _states(tokenizer: Tokenizer, asked: _Asked) -> bool:
    return any(_stating(tokenizer, asked))


@dataclasses.dataclass(slots=True)
class _Said:
    """What has been said so far: right or wrong once it is known.

    Attributes:
        tokens: the likeliest ones, each behind those before.
        is_over: whether a number has been said, or too much without one.
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    text: str = ""
    is_over: bool = False
    is_right: bool = False

    def draft(self, tokenizer: Tokenizer, answer: str) -> list[int]:
        """What would make it right, from where it stands."""
        begun = self._begun(answer)
        if begun is None:
            return tokenizer.encode(f" {answer}").tolist()
        return tokenizer.encode(answer[len(begun) :]).tolist()

    def _begun(self, answer: str) -> str | None:
        """The part of the answer that the text ends with; None if no number has begun."""
        number = _NUMBER.search(self.text)
        return answer[: len(self.text) - number.start()] if number else None

    def hear(self, tokenizer: Tokenizer, draft: list[int], told: list[int]) -> None:
        """Takes in the likeliest tokens at the draft's places and one behind it.

        What comes behind a place where the draft is wrong was told for another text.
        """
        agrees = [ours == theirs for ours, theirs in zip(draft, told, strict=False)]
        kept = agrees.index(False) + 1 if not all(agrees) else len(draft) + 1
        self.tokens += told[:kept]
        # A decoder may embed more tokens than there are; the others are no text.
        known = [token for token in self.tokens if token < tokenizer.vocab_size]
        self.text = tokenizer.decode(known)

    def judge(self, answer: str) -> None:
        """Decides whether the first number is the answer, as soon as that is known."""
        number = _NUMBER.search(self.text)
        if number is not None:
            rest = self.text[number.start() :]
            is_begun = answer.startswith(rest) and len(rest) <= len(answer)
            self.is_over, self.is_right = not is_begun, number[0] == answer
        num_most = _FREE_TOKENS + len(answer)
        if not self.is_over and len(self.tokens) >= min(num_most, _ROOM - len(answer)):
            self.is_over, self.is_right = True, bool(number and number[0] == answer)


def _answers(asking: Asking, name: str, rows: Sequence[_Asked]) -> list[_Said]:
    """What is said to each question, greedily.

    A pass over a question with what would be the right answer tells the likeliest token at
    each of its places: all up to the first that differs are said. So few passes are enough.
    """
    size, said = asking.cfg.evaluation.batch_size, [_Said() for _ in rows]
    waiting = list(range(len(rows)))
    make: Callable = _prompted if name == "prompt" else _beside
    with Progress(f"questions of fact, {name}", len(rows), "answers") as progress:
        while waiting:
            some = waiting[:size]
            drafts = [
                said[place].draft(asking.tokenizer, rows[place].answer)
                for place in some
            ]
            texts = [
                [*rows[place].prompt, *said[place].tokens, *draft]
                for place, draft in zip(some, drafts, strict=True)
            ]
            batch, end = make(asking.cfg, [rows[place] for place in some], texts)
            likeliest_BL = evaluation.likeliest_tokens(
                asking.cfg.model,
                asking.params,
                asking.mesh,
                batch,
                encodings=asking.encodings,
            )
            for place, draft, told_L in zip(some, drafts, likeliest_BL, strict=False):
                each = said[place]
                start = end - 1 + len(each.tokens)
                told = told_L[start : start + len(draft) + 1].tolist()
                each.hear(asking.tokenizer, draft, told)
                each.judge(rows[place].answer)
                progress.advance(int(each.is_over))
            waiting = [place for place in waiting if not said[place].is_over]
    return said


def _beside(
    cfg: Experiment, rows: Sequence[_Asked], texts: Sequence[list[int]]
) -> tuple[Batch, int]:
    """Questions whose passages are read beside the text, and where they end.

    A question ends with a chunk, whose passages its last token reads.
    """
    chunk_len, size = cfg.model.chunk_len, cfg.evaluation.batch_size
    batch = _texts(size, chunk_len, [row.prompt for row in rows], texts)
    num_chunks = batch["inputs_BL"].shape[1] // chunk_len  # the others' are absent
    shape = (size, num_chunks, cfg.data.num_neighbours)
    neighbours = np.zeros((*shape, cfg.model.neighbour_len), np.int32)
    lengths = np.zeros(shape, np.int32)
    for place, row in enumerate(rows):
        for number, passage in enumerate(row.passages):
            neighbours[place, 0, number, : len(passage)] = passage
            lengths[place, 0, number] = len(passage)
    batch |= {"neighbours_BCNR": neighbours, "neighbour_lengths_BCN": lengths}
    return batch, chunk_len


def _prompted(
    cfg: Experiment, rows: Sequence[_Asked], texts: Sequence[list[int]]
) -> tuple[Batch, int]:
    """Questions behind their passages, as prompts have them, and where they end."""
    before = [
        [token for passage in row.passages for token in passage] + row.prompt
        for row in rows
    ]
    texts = [
        [*prompt, *text[len(row.prompt) :]]
        for prompt, row, text in zip(before, rows, texts, strict=True)
    ]
    end = cfg.model.chunk_len + cfg.data.num_neighbours * cfg.model.neighbour_len
    batch = _texts(cfg.evaluation.batch_size, end, before, texts)
    none = np.zeros((cfg.evaluation.batch_size, 1, 0), np.int32)
    return {**batch, "neighbour_lengths_BCN": none}, end


def _texts(
    size: int, end: int, prompts: Sequence[list[int]], texts: Sequence[list[int]]
) -> Batch:
    """Texts so that each prompt ends at one place; the last rows may be padding."""
    inputs_BL = np.zeros((size, end + _ROOM), np.int32)
    segments_BL = np.zeros_like(inputs_BL)
    for place, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        start = end - len(prompt)
        stop = min(start + len(text), inputs_BL.shape[1])
        inputs_BL[place, start:stop] = text[: stop - start]
        segments_BL[place, start:stop] = 1
    return {"inputs_BL": inputs_BL, "segments_BL": segments_BL}
