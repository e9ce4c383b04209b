"""Queries a second of the indexes, all tuned to one recall.

    python -m tools.benchmark index --vectors=FILE.npy --rows=400000

ScaNN, as this project uses it, beside exact search, hnswlib and Faiss where they are
installed. Half of the held-out queries tune each, the other half are timed in one batch.
Every library may use all cores that the process may: `taskset -c 0` measures one thread.

Letters here: P pairs of query and row.
"""

import argparse
import dataclasses
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.index import checks, exact, faiss, recall, scann
from data_pipeline.index.recall import Effort
from tools.benchmark.result import (
    UNKNOWN,
    Result,
    Row,
    alternate,
    describe_machine,
    progress,
    ratio,
)
from tools.benchmark.synthetic import clustered

K = 10
_STEP = 1.2  # from an effort to the next
_REORDERS = (20, 50, 100, 200)  # candidates that are re-ranked


@dataclasses.dataclass(frozen=True, slots=True)
class Contestant:
    """An index whose `search(queries_QW, effort, reorder)` gives rows (Q, 10)."""

    name: str
    search: Callable[[np.ndarray, int, int], np.ndarray]
    efforts: Sequence[int]
    reorders: Sequence[int] = (0,)  # codes that are re-ranked, where that is a choice
    effort_name: str = ""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `index`."""
    command.add_argument("--rows", type=int, help="at most; 50000 of made-up vectors")
    command.add_argument("--queries", type=int, default=2_000)
    command.add_argument("--width", type=int, default=384, help="of made-up vectors")
    command.add_argument("--recall", type=float, default=0.95, help="of 10 neighbours")
    command.add_argument("--vectors", type=Path, help=".npy; queries are its last rows")


def run(args: argparse.Namespace) -> Result:
    """Gives build time, recall and queries a second of each index at the same recall@10."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # where the others run; exact search would not
    vectors_TW, queries_QW, what = _vectors(args)
    tuning_QW, asked_QW = queries_QW[::2], queries_QW[1::2]
    tuning_limit_Q, limit_Q = (_limits(vectors_TW, q) for q in (tuning_QW, asked_QW))
    threads = len(os.sched_getaffinity(0))
    ready: dict[str, Callable[[], np.ndarray]] = {}
    rows: list[Row] = []
    for name, build in builders(threads).items():
        progress(f"building {name}")
        start_s = time.perf_counter()
        contestant = build(vectors_TW)
        row: Row = {"index": name, "kind": contestant.name}
        row["build s"] = round(time.perf_counter() - start_s, 1)

        def is_enough(ids_QN: np.ndarray) -> bool:
            found = _recall(vectors_TW, tuning_QW, ids_QN, tuning_limit_Q)
            return found >= args.recall

        chosen = tune(contestant, tuning_QW, is_enough, _seconds)
        if chosen is None:
            rows.append(row | {"effort": f"none reaches {args.recall}"})
            continue
        effort, reorder = chosen
        row["effort"] = f"{contestant.effort_name} {effort}".strip()
        row["re-ranked"] = reorder or UNKNOWN
        ready[name] = _searching(contestant, asked_QW, effort, reorder)
        rows.append(row)
    elapsed_s = alternate(ready, args.rounds)
    for row in rows:
        label = str(row["index"])
        if label in ready:
            found = _recall(vectors_TW, asked_QW, ready[label](), limit_Q)
            row["recall@10"] = round(found, 4)
            row["queries/s"] = _rate(asked_QW, elapsed_s[label])
            if "scann" in elapsed_s:
                row["scann queries/s"] = _rate(asked_QW, elapsed_s["scann"])
                row["scann / index"] = ratio(elapsed_s[label], elapsed_s["scann"])
    conditions = describe_machine(("numpy", "scann", "hnswlib", "faiss-cpu")) | {
        "threads": threads,
        "rows": len(vectors_TW),
        "queries": f"{len(asked_QW)} in a batch, {len(tuning_QW)} others to tune",
        "vectors": what,
        "rounds": args.rounds,
    }
    notes = [
        f"{name} is not installed, or does not reach the recall"
        for name in ("hnswlib", "faiss IVF-flat")
        if name not in elapsed_s
    ]
    return Result(name="index", conditions=conditions, rows=rows, notes=notes)


def _rate(queries_QW: np.ndarray, elapsed_s: list[float]) -> int:
    return round(len(queries_QW) / statistics.median(elapsed_s))


def _searching(
    contestant: Contestant, queries_QW: np.ndarray, effort: int, reorder: int
) -> Callable[[], np.ndarray]:
    return lambda: contestant.search(queries_QW, effort, reorder)


def _seconds(run: Callable[[], object]) -> float:
    """Gives the seconds of the best of three runs."""
    return min(alternate({"": run}, 3)[""])


def _limits(vectors_TW: np.ndarray, queries_QW: np.ndarray) -> np.ndarray:
    """Gives the squared distance of each query's tenth nearest."""
    return exact.ExactIndex(vectors_TW).search(queries_QW, K)[1][:, -1] + recall.TIE


def _recall(vectors_TW, queries_QW, ids_QN: np.ndarray, limit_Q: np.ndarray) -> float:
    """Gives the share of the nearest that were found; of equally near ones any will do."""
    query_P, place_P = np.nonzero(ids_QN >= 0)
    distance_P = exact.pair_distances(
        vectors_TW, queries_QW, query_P, ids_QN[query_P, place_P]
    )
    return float(np.count_nonzero(distance_P <= limit_Q[query_P]) / ids_QN.size)


def _vectors(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, str]:
    """Gives rows and queries, float32, and what they are."""
    if args.vectors:
        stored_TW = np.load(args.vectors, mmap_mode="r", allow_pickle=False)
        held_out_TW = np.array(stored_TW[-args.queries :], np.float32)
        rows_TW = np.array(stored_TW[: -args.queries][: args.rows], np.float32)
        checks.check_vectors(rows_TW)
        return rows_TW, held_out_TW, args.vectors.name
    total = (args.rows or 50_000) + args.queries
    made_TW = clustered(np.random.default_rng(0), total, args.width)
    return made_TW[: -args.queries], made_TW[-args.queries :], "clusters of 50"


def builders(threads: int) -> dict[str, Callable[[np.ndarray], Contestant]]:
    """Gives what can be built here, by name; all search with as many threads."""
    found: dict[str, Callable[[np.ndarray], Contestant]] = {
        "exact": _exact,
        "scann": _scann,
    }
    if importlib.util.find_spec("hnswlib") is not None:
        found["hnswlib"] = lambda vectors_TW: _hnswlib(vectors_TW, threads)
    if importlib.util.find_spec("faiss") is not None:
        found["faiss IVF-flat"] = lambda v: _faiss(v, threads, "Flat")
        found["faiss IVF-PQ fast scan"] = lambda v: _faiss(v, threads, "PQ")
    return found


def tune(
    contestant: Contestant,
    queries_QW: np.ndarray,
    is_enough: Callable[[np.ndarray], bool],
    seconds: Callable[[Callable[[], object]], float],
) -> tuple[int, int] | None:
    """Finds the effort and re-ranking that reach the recall soonest; None if none does.

    Of every re-ranking the least effort that is enough, of these the fastest.
    """
    enough = []
    for reorder in contestant.reorders:
        for effort in contestant.efforts:
            if is_enough(contestant.search(queries_QW, effort, reorder)):
                enough.append((effort, reorder))
                break
    if len(enough) < 2:
        return enough[0] if enough else None
    return min(enough, key=lambda e: seconds(lambda: contestant.search(queries_QW, *e)))


def _efforts(first: int, last: int) -> list[int]:
    efforts = [first]
    while efforts[-1] < last:
        efforts.append(min(last, max(efforts[-1] + 1, int(efforts[-1] * _STEP))))
    return efforts


def _is_unit(vectors_TW: np.ndarray) -> bool:
    return bool(np.abs(np.square(vectors_TW).sum(axis=1) - 1).max() < 2e-3)


def _exact(vectors_TW: np.ndarray) -> Contestant:
    index = exact.ExactIndex(vectors_TW)
    return Contestant("exact", lambda q, *_: index.search(q, K)[0], [1])


def _scann(vectors_TW: np.ndarray) -> Contestant:
    index = scann.ScannIndex.build(vectors_TW, recall_target=0.5, seed=0)

    def search(queries_QW: np.ndarray, leaves: int, reorder: int) -> np.ndarray:
        return index.with_effort(Effort(leaves, reorder)).search(queries_QW, K)[0]

    efforts = _efforts(1, index.num_leaves)
    return Contestant("scann", search, efforts, _REORDERS, effort_name="leaves")


def _hnswlib(vectors_TW: np.ndarray, threads: int) -> Contestant:
    hnswlib: Any = importlib.import_module("hnswlib")
    space = "ip" if _is_unit(vectors_TW) else "l2"
    index = hnswlib.Index(space=space, dim=vectors_TW.shape[1])
    index.init_index(max_elements=len(vectors_TW), ef_construction=200, M=16)
    index.set_num_threads(threads)
    index.add_items(vectors_TW)

    def search(queries_QW: np.ndarray, effort: int, _) -> np.ndarray:
        index.set_ef(effort)
        return index.knn_query(queries_QW, k=K)[0].astype(np.int64)

    return Contestant("hnswlib", search, _efforts(K, 2000), effort_name="ef")


def _faiss(vectors_TW: np.ndarray, threads: int, codes: str) -> Contestant:
    library = faiss.import_faiss()
    library.omp_set_num_threads(threads)
    num_lists, width = round(4 * len(vectors_TW) ** 0.5), vectors_TW.shape[1]
    quantised = f"PQ{width // 2 if width % 2 == 0 else width}x4fs,RFlat"
    is_unit = _is_unit(vectors_TW)
    metric = library.METRIC_INNER_PRODUCT if is_unit else library.METRIC_L2
    kind = f"IVF{num_lists},{'Flat' if codes == 'Flat' else quantised}"
    index = library.index_factory(width, kind, metric)
    library.extract_index_ivf(index).cp.min_points_per_centroid = 1
    index.train(vectors_TW)
    index.add(vectors_TW)

    def search(queries_QW: np.ndarray, probes: int, reorder: int) -> np.ndarray:
        parameters = library.SearchParametersIVF(nprobe=probes)
        if reorder:
            parameters = library.IndexRefineSearchParameters(
                k_factor=reorder / K, base_index_params=parameters
            )
        return index.search(queries_QW, K, params=parameters)[1]

    return Contestant(
        f"faiss {kind}",
        search,
        _efforts(1, num_lists),
        reorders=(0,) if codes == "Flat" else _REORDERS,
        effort_name="probes",
    )
