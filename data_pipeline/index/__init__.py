"""Nearest neighbours of vectors by squared Euclidean distance.

One protocol, one file a backend: `exact.py` (numpy), `scann.py` and `faiss.py`. An index
knows rows 0..T-1 and nothing of chunks; `sharded.py` makes one of several and knows whose
rows they are.
"""

import json
import os
import pathlib

import numpy as np
from absl import logging
from jaxtyping import Float, Int64

from data_pipeline.config import INDEX_KINDS
from data_pipeline.index import exact, faiss, scann
from data_pipeline.index.protocol import Index

AUTO_SCANN_ROWS = 20_000  # below this exact search is as fast and needs no tuning
_TIE = 1e-6  # squared distance by which float32 results may differ


def build_index(
    vectors_TW: Float[np.ndarray, "T W"],
    kind: str = "auto",
    *,
    recall_target: float = 0.97,
    seed: int = 0,
    queries_QW: Float[np.ndarray, "Q W"] | None = None,
    scratch: pathlib.Path | None = None,
) -> Index:
    """Builds an index over vectors in memory or in a memory map.

    Args:
      vectors_TW: float16, float32 or float64; a memory map is not read at once when the
        index is exact, and is copied to memory as float32 by ScaNN and Faiss.
      kind: "auto" is ScaNN from 20,000 rows on where it can be imported, else exact;
        "scann" and "faiss-ivfpq" are exact below 1,000 rows, too few to train on;
        "faiss-flat" is exact search by Faiss.
      recall_target: recall of 2 neighbours that "scann" and "faiss-ivfpq" are tuned to,
        in (0, 1].
      seed: of the sample of rows that these are tuned with, if no queries are given.
      queries_QW: what will be asked, from outside the database, to tune them with:
        rows of the database lie nearer to their neighbours than new text does. From 100
        on they are used.
      scratch: folder in which ScaNN's training keeps a copy of the vectors, 4 T W bytes,
        while it takes; None: the system's temporary folder.
    Raises:
      ValueError: for vectors that are zero, not finite or not of rank 2, for another
        kind or target.
      ImportError: when ScaNN or Faiss is asked for by name and cannot be imported.
    Source: ours, measured: exact search is faster than embedding up to here, and ScaNN
      the fastest of the approximate ones at the same recall.
    """
    if kind not in INDEX_KINDS:
        raise ValueError(f"index kind must be of {INDEX_KINDS}, not {kind!r}")
    if not 0 < recall_target <= 1:
        raise ValueError(f"recall_target must be in (0, 1], not {recall_target}")
    exact.check_vectors(vectors_TW)
    if kind == "faiss-flat":
        return faiss.FaissFlatIndex.build(vectors_TW)
    if kind == "faiss-ivfpq" and not _too_few(len(vectors_TW), faiss.MIN_ROWS):
        return faiss.FaissIvfPqIndex.build(
            vectors_TW, recall_target=recall_target, seed=seed, queries_QW=queries_QW
        )
    if _use_scann(kind, len(vectors_TW)):
        return scann.ScannIndex.build(
            vectors_TW,
            recall_target=recall_target,
            seed=seed,
            queries_QW=queries_QW,
            scratch=scratch,
        )
    return exact.ExactIndex(vectors_TW)


def _too_few(size: int, min_rows: int) -> bool:
    if size < min_rows:
        logging.info("index of %d rows is exact: %d train one", size, min_rows)
    return size < min_rows


def _use_scann(kind: str, size: int) -> bool:
    if kind not in ("auto", "scann") or (kind == "auto" and size < AUTO_SCANN_ROWS):
        return False
    if _too_few(size, scann.MIN_ROWS):
        return False
    if kind == "scann":
        return True
    try:
        scann.import_scann()
    except ImportError as error:
        logging.warning("index of %d rows is exact, no ScaNN here: %s", size, error)
        return False
    return True


def load_index(folder: str | os.PathLike[str]) -> Index:
    """Opens a saved index: the exact one by memory map, others into memory.

    Raises:
      FileNotFoundError: when there is no index in `folder`.
      ValueError: naming the file that is missing, truncated or of another version.
    """
    folder = pathlib.Path(folder)
    path = folder / exact.META
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no index: there is no {path}")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    exact.check_files(folder, meta)
    if meta["kind"] == "exact":
        return exact.ExactIndex.load(folder)
    if meta["kind"] == "scann":
        return scann.ScannIndex.load(folder, meta)
    if meta["kind"] == "faiss-flat":
        return faiss.FaissFlatIndex.load(folder)
    if meta["kind"] == "faiss-ivfpq":
        return faiss.FaissIvfPqIndex.load(folder, meta)
    raise ValueError(f"{path}: unknown kind of index {meta['kind']!r}")


def measure_recall(
    index: Index,
    vectors_TW: Float[np.ndarray, "T W"],
    queries_QW: Float[np.ndarray, "Q W"],
    k: int,
) -> float:
    """Gives the share of the `k` nearest that `index` finds, against exact search.

    1.0 when nothing is to be found.
    """
    found_QN, _ = index.search(queries_QW, k)
    _, nearest_QN = exact.ExactIndex(vectors_TW).search(queries_QW, k)
    return recall_of(found_QN, nearest_QN, vectors_TW, queries_QW)


def recall_of(
    found_QN: Int64[np.ndarray, "Q N"],
    nearest_QN: Float[np.ndarray, "Q M"],
    vectors_TW: Float[np.ndarray, "T W"],
    queries_QW: Float[np.ndarray, "Q W"],
) -> float:
    """As `measure_recall`, of rows that were found.

    A row counts, once, when its true squared distance is at most the k-th nearest one's
    plus 1e-6: of equally near rows any will do.

    Args:
        nearest_QN: squared distances of the M >= N nearest.
    """
    k = found_QN.shape[1]
    wanted = min(k, len(vectors_TW)) * len(queries_QW)
    if not wanted:
        return 1.0
    limit_Q = nearest_QN[:, min(k, len(vectors_TW)) - 1] + _TIE
    found_QN = np.sort(found_QN, axis=1)
    is_new_QN = found_QN >= 0
    is_new_QN[:, 1:] &= found_QN[:, 1:] != found_QN[:, :-1]
    query_P, place_P = np.nonzero(is_new_QN)
    distance_P = exact.pair_distances(
        vectors_TW, queries_QW, query_P, found_QN[query_P, place_P]
    )
    return float(np.count_nonzero(distance_P <= limit_Q[query_P]) / wanted)
