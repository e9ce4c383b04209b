"""A small database that faults are done to, and the questions that show what is left.

Its text is generated, its embedder the toy: it is made in seconds, anywhere.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.build import pipeline
from data_pipeline.config import DataConfig
from data_pipeline.database import Database, neighbours, verify

_SYLLABLES = [
    "ba",
    "do",
    "ki",
    "lu",
    "mer",
    "nat",
    "os",
    "pri",
    "que",
    "sil",
    "tu",
    "van",
]
_DOCUMENTS, _SENTENCES = 60, 6  # unless said otherwise
_K = 10
_ADDED: Sequence[dict[str, str]] = (
    {"id": "news", "text": "Nine violet tortoises rehearsed an opera in a lighthouse."},
    {"id": "brief", "text": "Four bronze herons audited the accounts of a cathedral."},
)


@dataclasses.dataclass(frozen=True)
class Facts:
    """The answers of a database, which are compared bit for bit.

    Attributes:
        found: of each query, document, offset and distance of its nearest passages; by
            the vectors stored, for ScaNN's own last digit is not the same in all processes.
        recall_at_2: of these queries, against a comparison with every vector.
    """

    found: list[list[tuple[str, int, float]]]
    recall_at_2: float


def write_corpus(folder: Path, seed: int, documents: int = _DOCUMENTS) -> Path:
    """Writes a corpus of generated sentences as JSON lines; gives its folder."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    texts = [
        " ".join(_sentence(rng) for _ in range(_SENTENCES)) for _ in range(documents)
    ]
    lines = [
        json.dumps({"id": f"document-{n}", "text": t}) for n, t in enumerate(texts)
    ]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def _sentence(rng: np.random.Generator) -> str:
    words = ["".join(rng.choice(_SYLLABLES, rng.integers(1, 4))) for _ in range(9)]
    return " ".join(words).capitalize() + "."


def config(corpus: Path, index: str = "exact", **others) -> DataConfig:
    """Gives settings that make every stage several shards, of 8-token chunks."""
    settings = DataConfig(
        corpus=str(corpus),
        validation_share=0.1,
        test_share=0.1,
        vocab_size=400,
        chunk_len=8,
        embedder="toy",
        index=index,
        index_shard_rows=500 if index == "exact" else 2000,  # ScaNN trains on 1,000
        candidates=6,
        shard_size_bytes=6000,
        sequence_chunks=4,
        neighbour_len=16,
    )
    return dataclasses.replace(settings, **others)


def make(corpus: Path, folder: Path, index: str = "exact", **others) -> None:
    """Builds the database, or goes on with it, without a word of its progress."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        pipeline.Build(config(corpus, index, **others), folder).run()


def queries() -> list[str]:
    """Gives the same texts every time; the last two find what updates add."""
    rng = np.random.default_rng(1)
    return [_sentence(rng) for _ in range(24)] + [record["text"] for record in _ADDED]


def facts_of(folder: Path) -> Facts:
    """Opens and searches the database as a user would.

    Raises:
        ValueError: if it can't be opened or searched.
    """
    opened = Database.open(folder)
    passages = opened.search(queries(), _K)
    ids_QN = np.array([[one.chunk_id for one in row] for row in passages])
    ids_QN, distances_QN = neighbours.with_exact_distances(
        ids_QN, opened.embedder.embed(queries()), opened.snapshot.vectors
    )
    found = []
    for row, ids, distances in zip(passages, ids_QN, distances_QN, strict=True):
        by_id = {one.chunk_id: (one.document_id, one.offset) for one in row}
        near = zip(ids.tolist(), distances.tolist(), strict=True)
        found.append([(*by_id[number], distance) for number, distance in near])
    return Facts(found, _recall_at_2(opened))


def _recall_at_2(opened: Database) -> float:
    queries_QW = opened.embedder.embed(queries())
    found_QN, _ = opened.nearest(queries_QW, 2)
    ids_T = np.sort(opened.snapshot.searchable)
    vectors_TW = opened.snapshot.vectors(ids_T).astype(np.float32)
    products_QT = queries_QW @ vectors_TW.T
    best_QN = ids_T[np.argsort(-products_QT, axis=1, kind="stable")[:, :2]]
    hits = sum(len(set(f) & set(b)) for f, b in zip(found_QN, best_QN, strict=True))
    return hits / best_QN.size


def damaged_files(folder: Path) -> list[str]:
    """Names the files of the version in force that are not as written."""
    checked = verify.files(Database.open(folder).snapshot)
    return [str(path.relative_to(folder)) for path, problem in checked if problem]


def _first(opened: Database) -> str:
    """Finds the first document of the build that is still there."""
    ids = opened.snapshot.documents().column("id").to_pylist()
    return next(name for name in ids if name and opened.snapshot.has_document(name))


UPDATES: dict[str, Callable[[Database], object]] = {
    "add": lambda opened: opened.add(_ADDED),
    "replace": lambda opened: opened.replace(
        [{"id": _first(opened), "text": "All is new. " + _ADDED[0]["text"]}]
    ),
    "delete": lambda opened: opened.delete([_first(opened)]),
    "compact": lambda opened: opened.compact(),
}


def change(name: str, folder: Path) -> None:
    """Opens the database and makes one of the updates."""
    UPDATES[name](Database.open(folder))


def copy(source: Path, target: Path) -> Path:
    """Copies a database without the sequences, which no update and no search reads."""
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns("dataset"))
