"""Whether the right paragraph is found: by vectors, by words, and by both.

Takes questions in SQuAD's JSON layout (plain or .xz), builds a database with a document for
each of their paragraphs, unless it is there already, and asks it the questions.
"""

import argparse
import json
import lzma
import time
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
    """The flags of `hybrid`."""
    command.add_argument("--questions", type=Path, required=True, help="SQuAD's JSON")
    command.add_argument("--database", type=Path, required=True, help="folder for it")
    command.add_argument("--count", type=positive, default=1000, help="of questions")
    command.add_argument("--vocab_size", type=positive, default=16_000)


def run(args: argparse.Namespace) -> Result:
    """Share of questions whose paragraph is among the first 2 and 10 passages."""
    paragraphs, asked = read_squad(args.questions)
    database = _database(args.database, paragraphs, args.vocab_size)
    picks = np.random.default_rng(0).permutation(len(asked))[: args.count]
    questions = [asked[pick][0] for pick in picks]
    wanted_Q = database.snapshot.rows_of([asked[pick][1] for pick in picks])
    found, seconds = _rankings(database, questions)
    document_of = database.snapshot.document_of_chunk
    hits = {
        name: document_of[np.maximum(ids_QN, 0)] == wanted_Q[:, None]
        for name, ids_QN in found.items()
    }
    for name, ids_QN in found.items():
        hits[name] &= ids_QN >= 0
    rows: list[Row] = [
        {
            "ranking": name,
            "recall@1": round(float(hit_QN[:, 0].mean()), 4),
            "recall@2": round(float(hit_QN[:, :2].any(axis=1).mean()), 4),
            "recall@10": round(float(hit_QN.any(axis=1).mean()), 4),
            "ms/query": round(1000 * seconds[name] / len(questions), 2),
        }
        for name, hit_QN in hits.items()
    ]
    conditions = describe_machine(("bm25s", "numpy", "jax")) | {
        "paragraphs": len(paragraphs),
        "chunks": len(database.snapshot.searchable),
        "questions": len(questions),
        "embedder": database.manifest["embedder"],
        "chunk_len": database.chunk_len,
    }
    notes = [_difference(hits, k) for k in (2, _DEPTH)]
    return Result(name="hybrid", conditions=conditions, rows=rows, notes=notes)


def read_squad(path: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Paragraphs by id, each text once, and questions with the id of theirs.

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


def _rankings(database: Database, questions: list[str]):
    """Chunk ids (Q, 10) by each ranking, and the seconds that it took."""
    snapshot = database.snapshot
    ways = {
        "dense": lambda: hybrid.search(snapshot, questions, _DEPTH)[0],
        "words": lambda: snapshot.lexical.search(questions, _DEPTH)[0],
        "hybrid": lambda: hybrid.search(snapshot, questions, _DEPTH, rank="hybrid")[0],
    }
    database.search(questions[:1], 1, rank="hybrid")  # loads and compiles
    found, seconds = {}, {}
    for name, search in ways.items():
        start_s = time.perf_counter()
        found[name] = search()
        seconds[name] = time.perf_counter() - start_s
    return found, seconds


def _difference(hits: Mapping[str, np.ndarray], k: int) -> str:
    """Hybrid less dense, with a bootstrap interval over questions."""
    gain_Q = hits["hybrid"][:, :k].any(axis=1).astype(float)
    gain_Q -= hits["dense"][:, :k].any(axis=1)
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(gain_Q), (_RESAMPLES, len(gain_Q)))
    low, high = np.percentile(gain_Q[draws].mean(axis=1), [2.5, 97.5])
    return (
        f"recall@{k}, hybrid less dense: {gain_Q.mean():+.4f} "
        f"(95 % interval over questions {low:+.4f} to {high:+.4f})"
    )
