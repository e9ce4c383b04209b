"""Build time, recall and speed of the indexes."""

import argparse
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np

from data_pipeline import embedder, index
from experiments.benchmark.embed import code_chunks
from experiments.benchmark.result import Result, Row, alternate, describe_machine


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The flags of `index`."""
    command.add_argument("--rows", type=int, default=50_000)
    command.add_argument("--queries", type=int, default=2_000)
    command.add_argument("--width", type=int, default=384)
    command.add_argument("--real", action="store_true", help="embed text instead")


def run(args: argparse.Namespace) -> Result:
    """Build time, recall and queries a second of exact search and of ScaNN."""
    vectors_TW, queries_QW = _index_vectors(args)
    rows: list[Row] = []
    built: dict[str, index.Index] = {}
    build_s: dict[str, float] = {}
    for kind in ("exact", "scann"):
        start_s = time.perf_counter()
        built[kind] = index.build_index(vectors_TW, kind)
        build_s[kind] = time.perf_counter() - start_s
    elapsed_s = alternate(
        {kind: _searching(found, queries_QW) for kind, found in built.items()},
        args.rounds,
    )
    for kind, found in built.items():
        rows.append(
            {
                "index": kind,
                "build s": round(build_s[kind], 2),
                "recall@2": round(
                    index.measure_recall(found, vectors_TW, queries_QW, 2), 4
                ),
                "recall@10": round(
                    index.measure_recall(found, vectors_TW, queries_QW, 10), 4
                ),
                "queries/s": round(
                    len(queries_QW) / statistics.median(elapsed_s[kind])
                ),
                "MB on disk": round(_saved_bytes(found) / 1e6, 1),
            }
        )
    conditions = describe_machine(("numpy", "scann")) | {
        "rows": len(vectors_TW),
        "queries": len(queries_QW),
        "width": vectors_TW.shape[1],
        "vectors": "MiniLM of Python's library" if args.real else "clusters of 50",
        "rounds": args.rounds,
    }
    return Result(name="index", conditions=conditions, rows=rows, notes=[])


def _searching(found: index.Index, queries_QW: np.ndarray) -> Callable[[], object]:
    return lambda: found.search(queries_QW, 10)


def _saved_bytes(found: index.Index) -> int:
    with tempfile.TemporaryDirectory() as folder:
        found.save(pathlib.Path(folder) / "index")
        return sum(
            path.stat().st_size for path in (pathlib.Path(folder) / "index").iterdir()
        )


def _index_vectors(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Database and queries, disjoint draws of one distribution."""
    total = args.rows + args.queries
    rng = np.random.default_rng(0)
    if args.real:
        texts = code_chunks(total)
        vectors_TW = embedder.load_embedder("minilm").embed(texts)
        vectors_TW = vectors_TW[rng.permutation(total)]
    else:
        centres = rng.standard_normal((max(1, total // 50), args.width), np.float32)
        vectors_TW = rng.standard_normal((total, args.width), np.float32) * 0.5
        vectors_TW += centres[rng.integers(len(centres), size=total)]
        vectors_TW /= np.linalg.norm(vectors_TW, axis=1, keepdims=True)
    return vectors_TW[: args.rows], vectors_TW[args.rows :]
