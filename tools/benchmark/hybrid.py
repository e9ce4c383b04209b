"""Whether the right paragraph is found: by vectors, by words, and by both.

    python -m tools.benchmark hybrid --questions=squad-dev-v1.1.json --database=DIR

Takes questions in SQuAD's JSON layout (plain or .xz), builds a database with a document for
each of their paragraphs, unless it is there already, and asks it the questions.
"""

import argparse
import json
import lzma
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_pipeline.build.pipeline import Build
from data_pipeline.config import DataConfig
from data_pipeline.database import Database
from data_pipeline.database import search as hybrid
from tools.benchmark.result import Result, Row, describe_machine, positive

_DEPTH = 10
_RESAMPLES = 1000


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `hybrid`."""
    command.add_argument("--questions", type=Path, required=True, help="SQuAD's JSON")
    command.add_argument("--database", type=Path, required=True, help="folder for it")
    command.add_argument("--count", type=positive, default=1000, help="of questions")
    command.add_argument("--vocab_size", type=positive, default=16_000)


def run(args: argparse.Namespace) -> Result:
    """Gives the share of questions whose paragraph is among the first 2 and 10 passages."""
    paragraphs, asked = read_squad(args.questions)
    database = _database(args.database, paragraphs, args.vocab_size)
    picks = np.random.default_rng(0).permutation(len(asked))[: args.count]
    questions = [asked[pick][0] for pick in picks]
    wanted_Q = database.snapshot.rows_of([asked[pick][1] for pick in picks])
    found = _rankings(database, questions)
    hits = {
        name: database.snapshot.document_of_chunk[np.maximum(ids_QN, 0)]
        == wanted_Q[:, None]
        for name, ids_QN in found.items()
    }
    for name, ids_QN in found.items():
        hits[name] &= ids_QN >= 0
    rows: list[Row] = [_row(hits, k) for k in (1, 2, _DEPTH)]
    conditions = describe_machine(("bm25s", "numpy", "jax")) | {
        "paragraphs": len(paragraphs),
        "chunks": len(database.snapshot.searchable),
        "questions": len(questions),
        "embedder": database.manifest["embedder"],
        "chunk_len": database.chunk_len,
    }
    return Result(name="hybrid", conditions=conditions, rows=rows, notes=[])


def read_squad(path: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Reads paragraphs by id, each text once, and questions with the id of theirs.

    Raises:
        ValueError: naming the file, if it is not in SQuAD's layout.
    """
    opened = lzma.open if path.suffix == ".xz" else open
    ids: dict[str, str] = {}
    asked = []
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for article in json.load(file)["data"]:
                for paragraph in article["paragraphs"]:
                    name = ids.setdefault(paragraph["context"], f"p{len(ids):05d}")
                    asked += [(qa["question"], name) for qa in paragraph["qas"]]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not in SQuAD's layout ({error!r})") from error
    return {name: text for text, name in ids.items()}, asked


def _database(folder: Path, paragraphs: Mapping[str, str], vocab_size: int) -> Database:
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "paragraphs.jsonl"
    if not corpus.exists():
        lines = [json.dumps({"id": i, "text": t}) for i, t in paragraphs.items()]
        corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    cfg = DataConfig(
        corpus=str(corpus),
        lexical=True,
        vocab_size=vocab_size,
        validation_share=0.0,
        test_share=0.0,
    )
    Build(cfg, folder / "database").run("neighbours")
    return Database.open(folder / "database")


def _rankings(database: Database, questions: list[str]) -> dict[str, np.ndarray]:
    """Gives chunk ids (Q, 10) by each ranking."""
    ways = {
        "vectors": lambda: hybrid.search(database.snapshot, questions, _DEPTH)[0],
        "words": lambda: database.snapshot.lexical.search(questions, _DEPTH)[0],
        "both": lambda: hybrid.search(
            database.snapshot, questions, _DEPTH, rank="hybrid"
        )[0],
    }
    return {name: search() for name, search in ways.items()}


def _row(hits: Mapping[str, np.ndarray], k: int) -> Row:
    """Gives recall at k of each ranking; both less vectors, with a bootstrap interval."""
    hit_Q = {name: hit_QN[:, :k].any(axis=1) for name, hit_QN in hits.items()}
    gain_Q = hit_Q["both"].astype(float) - hit_Q["vectors"]
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(gain_Q), (_RESAMPLES, len(gain_Q)))
    low, high = np.percentile(gain_Q[draws].mean(axis=1), [2.5, 97.5])
    row: Row = {"recall at": k}
    row |= {name: round(float(found_Q.mean()), 4) for name, found_Q in hit_Q.items()}
    gain = f"{gain_Q.mean():+.3f} ({low:+.3f} to {high:+.3f})"
    return row | {"both less vectors": gain}
