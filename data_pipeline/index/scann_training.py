"""How a ScaNN index is trained: with leaves of our own, the same for the same vectors.

ScaNN's own k-means took two thirds of the time, and starts either from other rows in every
process or one center at a time. But it opens what it has saved, and makes again what is
not there: so it is given a saved index of vectors and leaves with their members, without
codes. Members, too, took it most of what was left, in one thread.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format

from data_pipeline.index import clustering

_SAMPLE_ROWS = 250_000  # that leaves are trained on
ITERATIONS = 6  # ten find no more neighbours
REORDER = 100  # candidates re-ranked where a search does not say how many
_NUMBERS_OF_CODE = 3  # of a vector, in 4 bits: two take longer, four find less
_CODE_SAMPLE_ROWS = 20_000  # for 16 codes of three numbers each
_ASSETS = {
    "PARTITIONER": "serialized_partitioner.pb",
    "TOKENIZATION_NPY": "datapoint_to_token.npy",
    "DATASET_NPY": "dataset.npy",
}


def train(
    scann_ops: Any,
    vectors_TW: np.ndarray,
    num_leaves: int,
    *,
    is_unit: bool,
    seed: int,
    scratch: Path | None,
) -> Any:
    """ScaNN's searcher over float32 vectors; the same for the same vectors and seed.

    ScaNN's part is made in one thread: its threads sum in any order.

    Args:
        scann_ops: the module of ScaNN that `import_scann` gives.
        vectors_TW: (T, W) in memory, checked before (`build_index`).
        is_unit: search by dot product, for which ScaNN has its best quantiser and spilling;
            else by squared distance.
        seed: of the rows that leaves are trained on and start from.
        scratch: folder for a copy of the vectors meanwhile, 4 T W bytes; None: the
            system's.
    Raises:
        OSError: naming the folder, if it is not there or the copy has no room.
        RuntimeError: if ScaNN can't read what it is given.
    """
    builder = scann_ops.builder(
        vectors_TW, 10, "dot_product" if is_unit else "squared_l2"
    )
    builder.tree(
        num_leaves=num_leaves,
        num_leaves_to_search=num_leaves,
        soar_lambda=clustering.SPILL_WEIGHT if is_unit else None,
    )
    builder.score_ah(
        _NUMBERS_OF_CODE,
        training_sample_size=_CODE_SAMPLE_ROWS,
        # Codes that favour large products are slower to make, and with re-ranking find
        # no more.
        anisotropic_quantization_threshold=float("nan"),
    )
    config = builder.reorder(REORDER).create_config()
    leaves_LW = _leaves(vectors_TW, num_leaves, seed)
    members = (
        clustering.nearest_and_spill(vectors_TW, leaves_LW)
        if is_unit
        else clustering.nearest(vectors_TW, leaves_LW)
    )
    with tempfile.TemporaryDirectory(dir=scratch, prefix="scann-") as name:
        _save(Path(name), config, leaves_LW, members, vectors_TW)
        with _native_log_aside():
            return scann_ops.load_searcher(name, assets_backcompat_shim=False)


def _leaves(vectors_TW: np.ndarray, num_leaves: int, seed: int) -> np.ndarray:
    """The (L, W) centers of leaves, from a sample of the rows if there are many."""
    rng = np.random.default_rng(seed)
    if len(vectors_TW) > _SAMPLE_ROWS:
        drawn = rng.choice(len(vectors_TW), _SAMPLE_ROWS, replace=False)
        vectors_TW = vectors_TW[np.sort(drawn)]
    return clustering.k_means(vectors_TW, num_leaves, rng, iterations=ITERATIONS)


def _save(
    folder: Path,
    config: str,
    leaves_LW: np.ndarray,
    members: np.ndarray,
    vectors_TW: np.ndarray,
) -> None:
    """Writes what ScaNN would have saved of such an index, but for what it makes of it."""
    # Its messages, and only when ScaNN is there: they come with it.
    from scann.partitioning import partitioner_pb2
    from scann.proto import scann_pb2

    parsed = text_format.Parse(config, scann_pb2.ScannConfig())
    (folder / "scann_config.pb").write_bytes(parsed.SerializeToString())
    partitioner = partitioner_pb2.SerializedPartitioner(
        n_tokens=len(leaves_LW), uses_projection=False
    )
    root = partitioner.kmeans.kmeans_tree.root
    root.leaf_id = -1  # no leaf
    for number, center_W in enumerate(leaves_LW):
        root.centers.add().dimension.extend(center_W.tolist())
        root.children.add().leaf_id = number
    (folder / _ASSETS["PARTITIONER"]).write_bytes(partitioner.SerializeToString())
    tokens = members.astype(np.int32).ravel()  # one or two of each vector
    np.save(folder / _ASSETS["TOKENIZATION_NPY"], tokens, allow_pickle=False)
    np.save(folder / _ASSETS["DATASET_NPY"], vectors_TW, allow_pickle=False)
    assets = [
        f'assets {{ asset_type: {kind} asset_path: "{name}" }}\n'
        for kind, name in _ASSETS.items()
    ]
    (folder / "scann_assets.pbtxt").write_text("".join(assets))


@contextlib.contextmanager
def _native_log_aside() -> Iterator[None]:
    """Keeps the C++ library's lines about its training off the terminal; its errors
    come as exceptions."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
