"""The rows that may be nearest, proposed by an accelerator; `exact.py` decides.

Products round differently there than in numpy, so the accelerator only proposes: more rows
than are wanted, with rough scores. Nothing of JAX is imported where there is none to use.

Letters here: M proposed rows, R rows of a block, G groups of rows.
"""

import functools
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from jaxtyping import Float, Float32, Int32

if TYPE_CHECKING:
    import jax

_MIN_ROWS = 20_000  # below, a search in numpy takes less than starting one elsewhere
_MAX_K = 512
_ROWS = 131_072  # with 256 queries a block of scores is 128 MB; powers of two all
_QUERIES = 256
_MIN_PROPOSED = 32
_GROUP = 32


def accelerator() -> "jax.Device | None":
    """The first of this process; None if it has none, or JAX_PLATFORMS says cpu.

    Raises:
        RuntimeError: JAX's, if there is one that can't be used.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return None
    import jax

    device = jax.local_devices()[0]
    return None if device.platform == "cpu" else device


class Proposer:
    """Vectors that go to an accelerator with the first search and stay there."""

    def __init__(self, vectors_TW: Float[np.ndarray, "T W"]):
        """Takes vectors in memory or in a memory map, float16 or float32."""
        self._vectors_TW = vectors_TW
        self._is_of_use = len(vectors_TW) >= _MIN_ROWS
        self._device: jax.Device | None = None
        self._blocks: list[Any] = []
        self._lock = threading.Lock()  # two threads may search first
        self.largest_norm = 0.0  # squared, of the vectors; once they are there

    def nearest(
        self, queries_QW: Float32[np.ndarray, "Q W"], k: int
    ) -> tuple[Float32[np.ndarray, "Q M"], Int32[np.ndarray, "Q M"]] | None:
        """Scores and rows of the M >= 2k nearest by rough scores, nearest first.

        A score is the squared distance without the query's squared norm. Where there are
        fewer rows than M, the tail is row -1 at infinity. None where it is for numpy to
        search: without an accelerator or room on it, for few rows, no query, or k > 512.
        """
        if not self._is_of_use or not len(queries_QW) or k > _MAX_K:
            return None
        try:
            with self._lock:
                if not self._blocks:
                    self._load()
            return self._nearest(queries_QW, k) if self._blocks else None
        # JAX's: no room, the device is another's, or it is asked for and not there.
        except (RuntimeError, AssertionError) as error:
            logging.warning("exact search goes on without the accelerator: %s", error)
            self._is_of_use = False
            return None

    def _load(self) -> None:
        """Copies the vectors block by block, as they are: 2 T W or 4 T W bytes."""
        self._device = accelerator()
        if self._device is None:
            self._is_of_use = False
            return
        import jax

        size = min(_ROWS, _power_of_two(len(self._vectors_TW)))
        blocks = []
        for start in range(0, len(self._vectors_TW), size):
            rows_RW = np.ascontiguousarray(self._vectors_TW[start : start + size])
            norms_R = np.square(rows_RW, dtype=np.float32).sum(axis=1)
            self.largest_norm = max(self.largest_norm, float(norms_R.max()))
            missing = size - len(rows_RW)
            rows_RW = np.pad(rows_RW, ((0, missing), (0, 0)))
            norms_R = np.pad(norms_R, (0, missing), constant_values=np.inf)
            block = (rows_RW, norms_R, np.int32(start))
            blocks.append(jax.device_put(block, self._device))
        self._blocks = blocks

    def _nearest(self, queries_QW: np.ndarray, k: int):
        """All queries, a block at a time; the device works while more are sent."""
        import jax

        num = _power_of_two(max(2 * k, _MIN_PROPOSED))
        found = []
        for start in range(0, len(queries_QW), _QUERIES):
            block_QW = queries_QW[start : start + _QUERIES]
            missing = _power_of_two(len(block_QW)) - len(block_QW)
            block_QW = np.pad(block_QW, ((0, missing), (0, 0)))  # few sizes to compile
            shape = (len(block_QW), num)
            nothing = (np.full(shape, np.inf, np.float32), np.full(shape, -1, np.int32))
            block_QW, best = jax.device_put((block_QW, nothing), self._device)
            for rows in self._blocks:
                best = _merge()(best, *rows, block_QW)
            found.append(best)
        scores_QM, rows_QM = (np.concatenate(each) for each in zip(*found, strict=True))
        return scores_QM[: len(queries_QW)], rows_QM[: len(queries_QW)]


@functools.cache
def _merge():
    """Compiled for the accelerator: one step of a search."""
    import jax

    return jax.jit(_nearest_of_both)


def _nearest_of_both(best, rows_RW, norms_R, first_row, queries_QW):
    """The nearest of what is known and of one block of rows."""
    import jax
    import jax.numpy as jnp

    scores_QM, rows_QM = best
    num = scores_QM.shape[1]
    products_QR = jnp.einsum(
        "QW,RW->QR",
        queries_QW,
        rows_RW.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,  # else bfloat16 or TF32
    )
    found_QM, place_QM = _smallest(norms_R - 2 * products_QR, min(num, len(norms_R)))
    place_QM = jnp.where(jnp.isinf(found_QM), -1, place_QM + first_row)
    scores_QM = jnp.concatenate([scores_QM, found_QM], axis=1)
    rows_QM = jnp.concatenate([rows_QM, place_QM], axis=1)
    least_QM, kept_QM = jax.lax.top_k(-scores_QM, num)
    return -least_QM, jnp.take_along_axis(rows_QM, kept_QM, axis=1)


def _smallest(scores_QR, num: int):
    """The `num` smallest and where they are.

    They lie in the `num` groups whose minima are smallest, so that little is sorted.
    """
    import jax
    import jax.numpy as jnp

    num_queries, num_rows = scores_QR.shape
    group = min(_GROUP, num_rows // num)
    groups = num_rows // group
    grouped_QRG = scores_QR.reshape(num_queries, group, groups)
    _, best_QM = jax.lax.top_k(-grouped_QRG.min(axis=1), num)
    members_QRM = jnp.take_along_axis(grouped_QRG, best_QM[:, None], axis=2)
    place_QRM = jnp.arange(group)[:, None] * groups + best_QM[:, None]
    least_QM, kept_QM = jax.lax.top_k(-members_QRM.reshape(num_queries, -1), num)
    place_QM = place_QRM.reshape(num_queries, -1)
    return -least_QM, jnp.take_along_axis(place_QM, kept_QM, axis=1)


def _power_of_two(number: int) -> int:
    """The next one."""
    return 1 << (number - 1).bit_length()
