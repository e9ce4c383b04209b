"""The kinds of index: which one a setting stands for, and which one a folder holds."""

import os
import pathlib

import numpy as np
from absl import logging
from jaxtyping import Float

from data_pipeline.config import INDEX_KINDS
from data_pipeline.index import checks, exact, faiss, index_files, scann
from data_pipeline.index.protocol import Index
from data_pipeline.storage.files import read_json

AUTO_SCANN_ROWS = 20_000  # below this exact search is as fast and needs no tuning


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
    checks.check_vectors(vectors_TW)
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
    path = folder / index_files.META
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no index: there is no {path}")
    meta = read_json(path)
    if meta is None or not {"kind", "size", "width"} <= meta.keys():
        raise ValueError(f"{path} is damaged: build the index again")
    index_files.check_files(folder, meta)
    if meta["kind"] == "exact":
        return exact.ExactIndex.load(folder)
    if meta["kind"] == "scann":
        return scann.ScannIndex.load(folder, meta)
    if meta["kind"] == "faiss-flat":
        return faiss.FaissFlatIndex.load(folder)
    if meta["kind"] == "faiss-ivfpq":
        return faiss.FaissIvfPqIndex.load(folder, meta)
    raise ValueError(f"{path}: unknown kind of index {meta['kind']!r}")
