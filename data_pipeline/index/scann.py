"""Approximate nearest neighbours with ScaNN.

ScaNN ends the process when a vector is not finite and fills rows it does not find with
id 0 at distance NaN: nothing unchecked goes in, nothing unmasked comes out. It is used
without document ids, the only thing it would pickle.
"""

import importlib
import os
import pathlib
import sys
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from data_pipeline.index import checks, index_files, scann_training
from data_pipeline.index.recall import Effort, Goal
from data_pipeline.storage.mapped_arrays import open_array

MIN_ROWS = 1_000  # fewer do not train its quantiser
_PARALLEL_QUERIES = 64
_PICKLE = "scann_docids.pkl"
_NORMS = "squared_norms.npy"
_UNIT = 2e-3  # how far float16 may move the squared norm of a unit vector


def import_scann() -> Any:
    """Imports ScaNN's search without TensorFlow.

    ScaNN imports TensorFlow when it finds it, for operations not used here: 10 s and
    600 MB, and a crash when their versions do not fit. A thread that imports TensorFlow
    for the first time at this very moment would not find it.

    Raises:
      ImportError: where there is no ScaNN (it has Linux wheels only).
    """
    missing = object()
    tensorflow: Any = sys.modules.get("tensorflow", missing)
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("scann").scann_ops_pybind
    finally:
        if tensorflow is missing:
            del sys.modules["tensorflow"]
        else:
            sys.modules["tensorflow"] = tensorflow


class ScannIndex:
    """A tree of about 2 sqrt(T) leaves over quantised vectors; satisfies `Index`.

    Distances are exact, to float32, for the rows returned: in another process they may
    differ in the last digit, for ScaNN sums in an order that seeded hashes decide. Which
    rows are found depends on the data; the number of leaves searched was chosen for
    `recall` of 2 neighbours.
    """

    def __init__(self, searcher: Any, norms_T: np.ndarray, facts: dict[str, Any]):
        """Takes ScaNN's searcher and what is kept beside it; use build or load."""
        self._searcher = searcher
        self._norms_T = norms_T  # squared
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
    def leaves_to_search(self) -> int:
        """Leaves searched for each query, as tuned at the build."""
        return int(self._facts["leaves_to_search"])

    @property
    def num_leaves(self) -> int:
        """Leaves that there are."""
        return int(self._facts["num_leaves"])

    def with_effort(self, effort: Effort) -> "ScannIndex":
        """The index, searched with another effort; nothing is copied."""
        facts = self._facts | {
            "leaves_to_search": effort.leaves,
            "reorder": effort.reorder,
            "recall_at_2": effort.recall,
        }
        return ScannIndex(self._searcher, self._norms_T, facts)

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
        scratch: pathlib.Path | None = None,
    ) -> "ScannIndex":
        """Trains, then raises the effort until the recall is reached.

        Takes at least 1,000 vectors, checked before (`build_index`), and copies them as
        float32 to memory and, meanwhile, to `scratch` (None: the system's temporary
        folder). The same input gives the same index.

        Unit vectors, which every embedder gives, are searched by dot product, for which
        ScaNN has its best quantiser and spilling; others by distance.

        Source: Guo et al. 2020 (arXiv 1908.10396); spilling: Sun et al. 2023 (SOAR, arXiv
        2404.00774), which more than halves the leaves needed.
        """
        vectors_TW = np.ascontiguousarray(vectors_TW, np.float32)
        num_leaves = round(2 * len(vectors_TW) ** 0.5)
        norms_T = np.square(vectors_TW).sum(axis=1)
        is_unit = bool(np.abs(norms_T - 1).max() < _UNIT)
        searcher = scann_training.train(
            import_scann(),
            vectors_TW,
            num_leaves,
            is_unit=is_unit,
            seed=seed,
            scratch=scratch,
        )
        facts = {
            "kind": "scann",
            "size": len(vectors_TW),
            "width": vectors_TW.shape[1],
            "measure": "dot_product" if is_unit else "squared_l2",
            "num_leaves": num_leaves,
            "recall_target": recall_target,
        }
        index = cls(searcher, norms_T, facts)
        goal = Goal.of(vectors_TW, queries_QW, recall_target, seed)
        return index.with_effort(
            goal.tune(
                num_leaves, lambda effort: index.with_effort(effort).search, "leaves"
            )
        )

    def search(
        self, queries_QW: Float[np.ndarray, "Q W"], k: int
    ) -> tuple[Int64[np.ndarray, "Q N"], Float32[np.ndarray, "Q N"]]:
        """Finds the nearest rows; equal ones at the k-th place may lose a lower row."""
        checks.check_queries(queries_QW, k, self.width)
        queries_QW = np.ascontiguousarray(queries_QW, np.float32)
        ids_QN = np.full((len(queries_QW), k), -1, np.int64)
        distances_QN = np.full((len(queries_QW), k), np.inf, np.float32)
        if not len(queries_QW):
            return ids_QN, distances_QN
        num_found = min(k, self.size)
        found = self._search(queries_QW, num_found, self.leaves_to_search)
        # Where the searched leaves hold fewer than k, the others are searched as well.
        short_Q = np.flatnonzero((found[0] < 0).any(axis=1))
        if short_Q.size:
            all_leaves = self._facts["num_leaves"]
            rest = self._search(queries_QW[short_Q], num_found, all_leaves)
            found[0][short_Q], found[1][short_Q] = rest
        ids_QN[:, :num_found], distances_QN[:, :num_found] = found
        return ids_QN, distances_QN

    def _search(
        self, queries_QW: np.ndarray, k: int, leaves: int
    ) -> tuple[np.ndarray, np.ndarray]:
        is_large = len(queries_QW) >= _PARALLEL_QUERIES
        name = "search_batched_parallel" if is_large else "search_batched"
        is_unit = self._facts["measure"] == "dot_product"
        reorder = max(self._facts.get("reorder", scann_training.REORDER), 4 * k)
        ids_QN, distances_QN = getattr(self._searcher, name)(
            queries_QW,
            final_num_neighbors=k,
            pre_reorder_num_neighbors=min(self.size, reorder),
            leaves_to_search=leaves,
        )
        is_padding_QN = ~np.isfinite(distances_QN)
        if is_unit:
            norms_QN = np.square(queries_QW).sum(axis=1, keepdims=True)
            norms_QN = norms_QN + self._norms_T[np.where(is_padding_QN, 0, ids_QN)]
            distances_QN = norms_QN - 2 * distances_QN
        ids_QN = np.where(is_padding_QN, -1, ids_QN.astype(np.int64))
        distances_QN = np.where(is_padding_QN, np.inf, np.maximum(distances_QN, 0))
        order_QN = np.lexsort((ids_QN, distances_QN))
        return (
            np.take_along_axis(ids_QN, order_QN, axis=1),
            np.take_along_axis(distances_QN, order_QN, axis=1).astype(np.float32),
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Saves ScaNN's own files, which may be moved, and meta.json."""

        def write(folder: pathlib.Path) -> None:
            self._searcher.serialize(os.fspath(folder), relative_path=True)
            np.save(folder / _NORMS, self._norms_T, allow_pickle=False)

        index_files.save_folder(folder, write, self._facts)

    @classmethod
    def load(cls, folder: pathlib.Path, meta: dict[str, Any]) -> "ScannIndex":
        """Reads into memory the files of a folder that `load_index` has checked."""
        facts = {
            name: value
            for name, value in meta.items()
            if name not in ("format_version", "file_sizes_bytes")
        }
        if (folder / _PICKLE).exists():  # ScaNN would run what is in it
            raise ValueError(f"{folder / _PICKLE} does not belong to this index")
        assets = (folder / "scann_assets.pbtxt").read_text()
        if "/" in assets or "\\" in assets:  # as written they are names in this folder
            raise ValueError(f"{folder} is damaged: its assets lie elsewhere")
        try:
            searcher = import_scann().load_searcher(
                os.fspath(folder), assets_backcompat_shim=False
            )
        except RuntimeError as error:
            raise ValueError(f"ScaNN cannot read {folder}: {error}") from error
        norms_T = open_array(folder / _NORMS)
        return cls(searcher, norms_T, facts)
