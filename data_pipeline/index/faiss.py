"""Nearest neighbours with Faiss: exact, and approximate from a quantiser.

Faiss asserts, ends the process or gives row -1 where it is asked for what it can't do:
nothing unchecked goes in, nothing unmasked comes out. Its files are its own, no pickle.
"""

import contextlib
import importlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from data_pipeline.index import checks, exact, index_files
from data_pipeline.index.recall import Effort, Goal
from data_pipeline.storage.extras import install_command

MIN_ROWS = 1_000  # fewer do not train quantiser and lists
_FILE = "index.faiss"
_PARALLEL_QUERIES = 64
_FLAT_SLACK = 8  # rows beyond k whose rounded distances may be misordered


def import_faiss() -> Any:
    """Imports Faiss.

    Raises:
      ImportError: naming the extra, where there is no Faiss.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError(
            "the index kinds faiss-flat and faiss-ivfpq need Faiss "
            f"({error}): {install_command('faiss')}"
        ) from error


class FaissFlatIndex:
    """Compares every query with every row; satisfies `Index`.

    The same as `ExactIndex` where no rows are nearly as far as the k-th: Faiss's fast
    distances round, those returned are computed again.
    """

    def __init__(self, flat: Any):
        """Takes Faiss's index; use build or load."""
        self._flat = flat
        self._vectors_TW = _stored(flat)

    @property
    def size(self) -> int:
        """T, the number of rows."""
        return int(self._flat.ntotal)

    @property
    def width(self) -> int:
        """W, the width of a vector."""
        return int(self._flat.d)

    @classmethod
    def build(cls, vectors_TW: Float[np.ndarray, "T W"]) -> "FaissFlatIndex":
        """Copies vectors, checked before (`build_index`), to memory as float32."""
        flat = import_faiss().IndexFlatL2(vectors_TW.shape[1])
        flat.add(np.ascontiguousarray(vectors_TW, np.float32))
        return cls(flat)

    def search(
        self, queries_QW: Float[np.ndarray, "Q W"], k: int
    ) -> tuple[Int64[np.ndarray, "Q N"], Float32[np.ndarray, "Q N"]]:
        """Finds the nearest rows; equal ones at the k-th place may lose a lower row."""
        checks.check_queries(queries_QW, k, self.width)
        queries_QW = np.ascontiguousarray(queries_QW, np.float32)
        if not len(queries_QW) or not self.size:
            return _nothing(len(queries_QW), k)
        return _flat_search(self._flat, self._vectors_TW, queries_QW, k)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Saves index.faiss and meta.json."""
        facts = {"kind": "faiss-flat", "size": self.size, "width": self.width}
        _save(self._flat, folder, facts)

    @classmethod
    def load(cls, folder: pathlib.Path) -> "FaissFlatIndex":
        """Reads into memory the file of a folder that `load_index` has checked."""
        return cls(_load(folder))


class FaissIvfPqIndex:
    """About 2 sqrt(T) lists of 4-bit codes, re-ranked by the vectors; satisfies `Index`.

    A code has 4 bits for two numbers of a vector, as ScaNN's here. Distances are exact, to
    float32, for the rows returned. How many lists are probed and how many codes are
    re-ranked was chosen for `recall` of 2 neighbours.
    """

    def __init__(self, refined: Any, facts: dict[str, Any]):
        """Takes Faiss's index and what was chosen; use build or load."""
        self._faiss = import_faiss()
        self._refined = refined
        self._flat = self._faiss.downcast_index(refined.refine_index)
        self._vectors_TW = _stored(self._flat)
        self._facts = facts

    @property
    def size(self) -> int:
        """T, the number of rows."""
        return int(self._facts["size"])

    @property
    def width(self) -> int:
        """W, the width of a vector."""
        return int(self._facts["width"])

    @property
    def lists_to_search(self) -> int:
        """Lists probed for each query (Faiss's nprobe), as tuned at the build."""
        return int(self._facts["lists_to_search"])

    def with_effort(self, effort: Effort) -> "FaissIvfPqIndex":
        """The index, searched with another effort; nothing is copied."""
        facts = self._facts | {
            "lists_to_search": effort.leaves,
            "reorder": effort.reorder,
            "recall_at_2": effort.recall,
        }
        return FaissIvfPqIndex(self._refined, facts)

    @property
    def recall(self) -> float:
        """Recall of 2 neighbours measured at the build, on rows without themselves."""
        return float(self._facts["recall_at_2"])

    @classmethod
    def build(
        cls,
        vectors_TW: Float[np.ndarray, "T W"],
        *,
        recall_target: float,
        seed: int,
        queries_QW: Float[np.ndarray, "Q W"] | None = None,
    ) -> "FaissIvfPqIndex":
        """Trains, then raises first the re-ranked codes and then the probed lists.

        Takes at least 1,000 vectors, checked before (`build_index`), and copies them to
        memory as float32. The same input gives the same index.

        Source: Jégou et al. 2011 (product quantisation with inverted lists); fast scan:
          André et al. 2017 (arXiv 1704.07355). Codes are of the vectors themselves, not of
          residuals: one table a query serves all lists, which is faster at equal recall
          once the best are re-ranked.
        """
        vectors_TW = np.ascontiguousarray(vectors_TW, np.float32)
        num_lists = round(2 * len(vectors_TW) ** 0.5)
        facts = {
            "kind": "faiss-ivfpq",
            "size": len(vectors_TW),
            "width": vectors_TW.shape[1],
            "num_lists": num_lists,
            "recall_target": recall_target,
        }
        index = cls(_train(vectors_TW, num_lists), facts)
        goal = Goal.of(vectors_TW, queries_QW, recall_target, seed)
        return index.with_effort(
            goal.tune(
                num_lists, lambda effort: index.with_effort(effort).search, "lists"
            )
        )

    def search(
        self, queries_QW: Float[np.ndarray, "Q W"], k: int
    ) -> tuple[Int64[np.ndarray, "Q N"], Float32[np.ndarray, "Q N"]]:
        """Finds the nearest rows; equal ones at the k-th place may lose a lower row."""
        checks.check_queries(queries_QW, k, self.width)
        queries_QW = np.ascontiguousarray(queries_QW, np.float32)
        if not len(queries_QW):
            return _nothing(0, k)
        num_found = min(k, self.size)
        reorder = min(self.size, max(self._facts["reorder"], 4 * num_found))
        parameters = self._faiss.IndexRefineSearchParameters(
            k_factor=reorder / num_found,
            base_index_params=self._faiss.SearchParametersIVF(
                nprobe=self.lists_to_search
            ),
        )
        with _threads_for(len(queries_QW)):
            distances_QN, ids_QN = self._refined.search(
                queries_QW, num_found, params=parameters
            )
        found = _ordered(ids_QN, distances_QN, k)
        # Where the probed lists hold fewer than k, all rows are compared.
        short_Q = np.flatnonzero((found[0][:, :num_found] < 0).any(axis=1))
        if short_Q.size:
            found[0][short_Q], found[1][short_Q] = _flat_search(
                self._flat, self._vectors_TW, queries_QW[short_Q], k
            )
        return found

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Saves index.faiss and meta.json."""
        _save(self._refined, folder, self._facts)

    @classmethod
    def load(cls, folder: pathlib.Path, meta: dict[str, Any]) -> "FaissIvfPqIndex":
        """Reads into memory the file of a folder that `load_index` has checked."""
        facts = {
            name: value
            for name, value in meta.items()
            if name not in ("format_version", "file_sizes_bytes")
        }
        return cls(_load(folder), facts)


def _train(vectors_TW: np.ndarray, num_lists: int) -> Any:
    """Faiss's index with all vectors in it; its k-means starts from a fixed seed.

    In one thread, so that it is the same on any number of cores; shards keep the others
    busy.
    """
    faiss = import_faiss()
    width = vectors_TW.shape[1]
    codes = width // 2 if width % 2 == 0 else width
    refined = faiss.index_factory(width, f"IVF{num_lists},PQ{codes}x4fs,RFlat")
    lists = faiss.downcast_index(refined.base_index)
    lists.by_residual = False
    # Fewer points than it likes are no reason to write to the terminal.
    lists.cp.min_points_per_centroid = lists.pq.cp.min_points_per_centroid = 1
    with _threads_for(1):
        refined.train(vectors_TW)
        refined.add(vectors_TW)
    return refined


@contextlib.contextmanager
def _threads_for(num_queries: int) -> Iterator[None]:
    """One thread for few queries: on a busy machine Faiss's others wait for each other
    a hundred times as long as they work. The setting is the calling thread's own."""
    faiss = import_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(before if num_queries >= _PARALLEL_QUERIES else 1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _stored(flat: Any) -> np.ndarray:
    """The vectors of a flat index, (T, W) float32, where they are; it must outlive them."""
    values = import_faiss().rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)
    return values.reshape(flat.ntotal, flat.d)


def _flat_search(flat: Any, vectors_TW: np.ndarray, queries_QW: np.ndarray, k: int):
    """The k nearest of all, with distances computed again without cancellation."""
    num_found = min(k + _FLAT_SLACK, len(vectors_TW))
    with _threads_for(len(queries_QW)):
        _, ids_QN = flat.search(queries_QW, num_found)
    query_P = np.repeat(np.arange(len(queries_QW)), num_found)
    distance_P = exact.pair_distances(vectors_TW, queries_QW, query_P, ids_QN.ravel())
    return _ordered(ids_QN, distance_P.reshape(ids_QN.shape), k)


def _ordered(ids_QN: np.ndarray, distances_QN: np.ndarray, k: int):
    """k columns by distance and row; -1 at infinity where there is none."""
    ids_QN = ids_QN.astype(np.int64)
    distances_QN = np.where(ids_QN < 0, np.inf, distances_QN).astype(np.float32)
    order_QN = np.lexsort((ids_QN, distances_QN))[:, :k]
    all_ids_QN, all_distances_QN = _nothing(len(ids_QN), k)
    width = order_QN.shape[1]
    all_ids_QN[:, :width] = np.take_along_axis(ids_QN, order_QN, axis=1)
    all_distances_QN[:, :width] = np.take_along_axis(distances_QN, order_QN, axis=1)
    return all_ids_QN, all_distances_QN


def _nothing(num_queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.full((num_queries, k), -1, np.int64),
        np.full((num_queries, k), np.inf, np.float32),
    )


def _save(index: Any, folder: str | os.PathLike[str], facts: dict[str, Any]) -> None:
    def write(folder: pathlib.Path) -> None:
        import_faiss().write_index(index, os.fspath(folder / _FILE))

    index_files.save_folder(folder, write, facts)


def _load(folder: pathlib.Path) -> Any:
    path = folder / _FILE
    try:
        return import_faiss().read_index(os.fspath(path))
    except RuntimeError as error:
        raise ValueError(
            f"Faiss cannot read {path}: {error}; build it again"
        ) from error
