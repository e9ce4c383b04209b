"""Queries a second of the indexes, all tuned to one recall.

ScaNN, as this project uses it, beside exact search, hnswlib and Faiss where they are
installed. Half of the held-out queries tune each, the other half are timed in one batch.
Every library may use all cores that the process may: `taskset -c 0` measures one thread.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipeline.database import Database
from data_pipeline.embedding import embedder
from data_pipeline.embedding.chunk_vectors import read_vectors
from data_pipeline.index import exact
from tools.benchmark import peers
from tools.benchmark.embed import code_chunks
from tools.benchmark.result import (
    UNKNOWN,
    Result,
    Row,
    alternate,
    describe_machine,
    progress,
)

_TIE = 1e-6  # squared distance by which float32 results may differ


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The flags of `index`."""
    command.add_argument("--rows", type=int, help="at most; 50000 of made-up vectors")
    command.add_argument("--queries", type=int, default=2_000)
    command.add_argument("--width", type=int, default=384, help="of made-up vectors")
    command.add_argument("--recall", type=float, default=0.95, help="of 10 neighbours")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--real", action="store_true", help="embed text instead")
    source.add_argument("--vectors", type=Path, help=".npy; queries are its last rows")
    source.add_argument("--database", type=Path, help="queries are of held-out text")


def run(args: argparse.Namespace) -> Result:
    """Build time, recall and queries a second of each index at the same recall@10."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # where the others run; exact search would not
    vectors_TW, queries_QW, what = _vectors(args)
    tuning_QW, asked_QW = queries_QW[::2], queries_QW[1::2]
    tuning_limit_Q, limit_Q = (_limits(vectors_TW, q) for q in (tuning_QW, asked_QW))
    threads = len(os.sched_getaffinity(0))
    ready: dict[str, Callable[[], np.ndarray]] = {}
    rows: list[Row] = []
    for name, build in peers.builders(threads).items():
        progress(f"building {name}")
        start_s = time.perf_counter()
        contestant = build(vectors_TW)
        row: Row = {"index": contestant.name}
        row["build s"] = round(time.perf_counter() - start_s, 1)

        def is_enough(ids_QN: np.ndarray) -> bool:
            found = _recall(vectors_TW, tuning_QW, ids_QN, tuning_limit_Q)
            return found >= args.recall

        chosen = peers.tune(contestant, tuning_QW, is_enough, _seconds)
        if chosen is None:
            rows.append(row | {"effort": f"none reaches {args.recall}"})
            continue
        effort, reorder = chosen
        row["effort"] = f"{contestant.effort_name} {effort}".strip()
        row["re-ranked"] = reorder or UNKNOWN
        row["name"] = name
        ready[name] = _searching(contestant, asked_QW, effort, reorder)
        rows.append(row)
    elapsed_s = alternate(ready, args.rounds)
    for row in rows:
        label = str(row.pop("name", ""))
        if label:
            found = _recall(vectors_TW, asked_QW, ready[label](), limit_Q)
            row["recall@10"] = round(found, 4)
            row["queries/s"] = round(
                len(asked_QW) / statistics.median(elapsed_s[label])
            )
    conditions = describe_machine(("numpy", "scann", "hnswlib", "faiss-cpu")) | {
        "threads": threads,
        "rows": len(vectors_TW),
        "queries": f"{len(asked_QW)} in a batch, {len(tuning_QW)} others to tune",
        "width": vectors_TW.shape[1],
        "vectors": what,
        "rounds": args.rounds,
    }
    return Result(
        name="index", conditions=conditions, rows=rows, notes=_notes(elapsed_s)
    )


def _notes(elapsed_s: dict[str, list[float]]) -> list[str]:
    notes = []
    for name in ("hnswlib", "faiss IVF-flat"):
        if name not in elapsed_s:
            notes.append(f"{name} is not installed, or does not reach the recall")
    for name in elapsed_s.keys() - {"scann"} if "scann" in elapsed_s else ():
        ratios = np.divide(elapsed_s[name], elapsed_s["scann"])
        notes.append(
            f"scann / {name}: median {np.median(ratios):.2f} times the queries/s, "
            f"rounds {ratios.min():.2f} to {ratios.max():.2f}"
        )
    return sorted(notes)


def _searching(
    contestant: peers.Contestant, queries_QW: np.ndarray, effort: int, reorder: int
) -> Callable[[], np.ndarray]:
    return lambda: contestant.search(queries_QW, effort, reorder)


def _seconds(run: Callable[[], object]) -> float:
    """The best of three."""
    return min(alternate({"": run}, 3)[""])


def _limits(vectors_TW: np.ndarray, queries_QW: np.ndarray) -> np.ndarray:
    """Squared distance of each query's tenth nearest."""
    return exact.ExactIndex(vectors_TW).search(queries_QW, peers.K)[1][:, -1] + _TIE


def _recall(vectors_TW, queries_QW, ids_QN: np.ndarray, limit_Q: np.ndarray) -> float:
    """Share of the nearest that were found; of equally near ones any will do."""
    query_P, place_P = np.nonzero(ids_QN >= 0)
    distance_P = exact.pair_distances(
        vectors_TW, queries_QW, query_P, ids_QN[query_P, place_P]
    )
    return float(np.count_nonzero(distance_P <= limit_Q[query_P]) / ids_QN.size)


def _vectors(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, str]:
    """Rows and queries, float32, and what they are."""
    if args.database:
        opened = Database.open(args.database)
        ids = opened.snapshot.searchable[: args.rows]
        held_out = opened.snapshot.paths.shards("embeddings", "validation")
        held_out += opened.snapshot.paths.shards("embeddings", "test")
        width = opened.manifest["embedding_width"]
        queries_QW = read_vectors(held_out, width, args.queries)
        rows_TW = opened.snapshot.vectors(ids).astype(np.float32)
        return rows_TW, queries_QW, f"{opened.manifest['embedder']} of a database"
    if args.vectors:
        stored_TW = np.load(args.vectors, mmap_mode="r", allow_pickle=False)
        held_out_TW = np.array(stored_TW[-args.queries :], np.float32)
        rows_TW = np.array(stored_TW[: -args.queries][: args.rows], np.float32)
        exact.check_vectors(rows_TW)
        return rows_TW, held_out_TW, args.vectors.name
    made_TW, what = _made(args)
    return made_TW[: -args.queries], made_TW[-args.queries :], what


def _made(args: argparse.Namespace) -> tuple[np.ndarray, str]:
    """Database and queries, disjoint draws of one distribution."""
    total = (args.rows or 50_000) + args.queries
    rng = np.random.default_rng(0)
    if args.real:
        vectors_TW = embedder.load_embedder("minilm").embed(code_chunks(total))
        return vectors_TW[rng.permutation(total)], "MiniLM of Python's library"
    centres = rng.standard_normal((max(1, total // 50), args.width), np.float32)
    vectors_TW = rng.standard_normal((total, args.width), np.float32) * 0.5
    vectors_TW += centres[rng.integers(len(centres), size=total)]
    vectors_TW /= np.linalg.norm(vectors_TW, axis=1, keepdims=True)
    return vectors_TW, "clusters of 50"
