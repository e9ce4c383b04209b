"""Indexes that are compared at one recall: exact, ours, hnswlib's and Faiss's.

Each gives the rows that it finds at an effort; the effort is raised until the recall is
reached. Faiss's are used as Faiss gives them, without our class around them.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipeline.index import exact, faiss, scann
from data_pipeline.index.recall_goal import Effort

K = 10
_STEP = 1.2  # from an effort to the next
_REORDERS = (20, 50, 100, 200)  # candidates that are re-ranked


@dataclasses.dataclass(frozen=True, slots=True)
class Contestant:
    """An index: `search(queries_QW, effort, reorder)` gives rows (Q, 10)."""

    name: str
    search: Callable[[np.ndarray, int, int], np.ndarray]
    efforts: Sequence[int]
    reorders: Sequence[int] = (0,)  # codes that are re-ranked, where that is a choice
    effort_name: str = ""


def builders(threads: int) -> dict[str, Callable[[np.ndarray], Contestant]]:
    """What can be built here, by name; all search with as many threads."""
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
    """The effort and re-ranking that reach the recall soonest; None if none does.

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
