"""Neighbours as a frozen decoder has read them, kept while there is room.

A decoder that reads neighbours itself reads each as a text of its own, so what comes out
depends on the neighbour's tokens alone. It is the dearest part of a step, and neighbours
come again: in the next pass over the data, in every condition of an evaluation, in chunks
that stand side by side. Entries are found by their tokens, so a database may change.

Letters here: T layers with CCA, P neighbours that are encoded at once.
"""

import collections
import functools

import jax
import numpy as np
from jaxtyping import Float, Int

from retro_jax.config import ModelConfig
from retro_jax.model import parameters
from retro_jax.training.batch import Batch

_AT_ONCE = 8  # neighbours; few shapes are compiled, and little is encoded in vain


class Encodings:
    """Encoded neighbours by their tokens; of those that were used longest ago it forgets.

    It belongs to one process with all devices of the mesh.
    """

    def __init__(self, cfg: ModelConfig, most_bytes: int):
        """Begins with nothing.

        Args:
            cfg: whose decoder reads neighbours itself; its parameters must not change
                while this is in use, but those of CCA, which encode nothing.
            most_bytes: memory for entries; the neighbours of one batch are held besides.
        """
        self._cfg, self._most_bytes = cfg, most_bytes
        self._kept: collections.OrderedDict[bytes, np.ndarray] = (
            collections.OrderedDict()
        )
        self.held_bytes = 0

    def added_to(self, params: parameters.Parameters, batch: Batch) -> Batch:
        """The batch with what its neighbours read as, `encoded_BCNTSE`.

        A batch without neighbours is given as it is.
        """
        if "neighbours_BCNR" not in batch or not batch["neighbour_lengths_BCN"].any():
            return batch
        first, end = self._cfg.neighbour_span
        tokens_BCNR = batch["neighbours_BCNR"][..., first:end]
        rows_PR = np.ascontiguousarray(
            tokens_BCNR.reshape(-1, end - first), dtype=np.int32
        )
        # What is absent is masked, whatever stands there: it costs no encoding.
        rows_PR = rows_PR * (batch["neighbour_lengths_BCN"].reshape(-1, 1) > 0)
        encoded_PTSE = self.of(params, rows_PR)
        shape = (*tokens_BCNR.shape[:3], *encoded_PTSE.shape[1:])
        return {**batch, "encoded_BCNTSE": encoded_PTSE.reshape(shape)}

    def of(
        self, params: parameters.Parameters, tokens_PR: Int[np.ndarray, "P R"]
    ) -> Float[np.ndarray, "P T S E"]:
        """What neighbours read as, in the activations' precision."""
        names = [row.tobytes() for row in tokens_PR]
        found = {name: self._kept[name] for name in names if name in self._kept}
        missing = list(dict.fromkeys(name for name in names if name not in found))
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            # The last ones are filled up, so that one shape is compiled.
            filled = [*some, *[some[-1]] * (_AT_ONCE - len(some))]
            rows = [np.frombuffer(name, np.int32) for name in filled]
            encoded = np.asarray(_encode(self._cfg, params, np.stack(rows)))
            found |= dict(zip(some, encoded, strict=False))
        for name in names:
            self._keep(name, found[name])
        return np.stack([found[name] for name in names])

    def _keep(self, name: bytes, encoded_TSE: np.ndarray) -> None:
        if name in self._kept:
            self._kept.move_to_end(name)
            return
        # A copy: a view would hold all that were encoded at once.
        self._kept[name] = encoded_TSE.copy()
        self.held_bytes += encoded_TSE.nbytes
        while self.held_bytes > self._most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.held_bytes -= oldest.nbytes


@functools.partial(jax.jit, static_argnums=0)
def _encode(cfg: ModelConfig, params, tokens_PR):
    return parameters.rebuild(cfg, params).encode(tokens_PR)
