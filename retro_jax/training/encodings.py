"""What a frozen decoder has read, kept while there is room.

A decoder that reads neighbours itself reads each as a text of its own, so what comes out
depends on the neighbour's tokens alone. Below its first cross-attention it reads the text
as if there were no neighbours, so what comes out there depends on the text alone. Both
come again: in the next pass over the data, in every condition of an evaluation, a
neighbour also in chunks that stand side by side. Entries are found by their tokens, so a
database may change.

Letters here: T layers with CCA, P neighbours that are encoded at once.
"""

import collections
import functools
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float, Int

from retro_jax.config import ModelConfig
from retro_jax.model import parameters
from retro_jax.model.layers import activation_dtype
from retro_jax.training.batch import Batch
from retro_jax.training.encodings_folder import EncodingsFolder

_AT_ONCE = 8  # neighbours; few shapes are compiled, and little is encoded in vain


class Encodings:
    """What was read, by its tokens; of what was used longest ago it forgets.

    It belongs to one process with all devices of the mesh.
    """

    def __init__(
        self, cfg: ModelConfig, most_bytes: int, on_disk: EncodingsFolder | None = None
    ):
        """Begins with what is on disk.

        Args:
            cfg: whose decoder reads neighbours itself; its parameters must not change
                while this is in use, but those of CCA, on which nothing here depends.
            most_bytes: memory for entries; those of one batch are held besides.
            on_disk: what other runs of the same decoder have read.
        """
        self._cfg, self._most_bytes, self._on_disk = cfg, most_bytes, on_disk
        self._kept: collections.OrderedDict[bytes, np.ndarray] = (
            collections.OrderedDict()
        )
        self.held_bytes = 0

    def added_to(self, params: parameters.Parameters, batch: Batch) -> Batch:
        """The batch with `lower_BSD`, and `encoded_BCNTSE` where it has neighbours."""
        lower_BSD = self.lower(params, batch["inputs_BL"], batch["segments_BL"])
        return self.neighbours_added_to(params, {**batch, "lower_BSD": lower_BSD})

    def neighbours_added_to(self, params: parameters.Parameters, batch: Batch) -> Batch:
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
        names = [b"neighbour" + row.tobytes() for row in tokens_PR]
        return self._looked_up(
            names, _AT_ONCE, lambda rows: _encode(self._cfg, params, tokens_PR[rows])
        )

    def lower(
        self,
        params: parameters.Parameters,
        inputs_BL: Int[np.ndarray, "B L"],
        segments_BL: Int[np.ndarray, "B L"],
    ) -> Float[np.ndarray, "B S D"]:
        """What texts read as up to the first cross-attention.

        Documents of a sequence do not see each other, so it depends on segments as well.
        """
        text_BL, parts_BL = inputs_BL.astype(np.int32), segments_BL.astype(np.int32)
        names = [
            b"text" + tokens_L.tobytes() + segments_L.tobytes()
            for tokens_L, segments_L in zip(text_BL, parts_BL, strict=True)
        ]
        return self._looked_up(
            names,
            # The shape in which the mesh splits a batch.
            len(names),
            lambda rows: _lower(self._cfg, params, text_BL[rows], parts_BL[rows]),
        )

    def _looked_up(
        self,
        names: list[bytes],
        at_once: int,
        read: Callable[[list[int]], jax.Array],
    ) -> np.ndarray:
        """The entries of these names; of what is missing, `read` is given the rows."""
        found = {
            name: entry
            for name in dict.fromkeys(names)
            if (entry := self._found(name)) is not None
        }
        first = {name: row for row, name in reversed([*enumerate(names)])}
        rows = sorted(row for name, row in first.items() if name not in found)
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            # The last ones are filled up, so that one shape is compiled.
            filled = [*some, *[some[-1]] * (at_once - len(some))]
            made = np.asarray(read(filled))
            for row, entry in zip(some, made, strict=False):
                found[names[row]] = entry
                if self._on_disk is not None:
                    self._on_disk.keep(names[row], entry)
        for name in names:
            self._keep(name, found[name])
        return np.stack([found[name] for name in names])

    def _found(self, name: bytes) -> np.ndarray | None:
        if name in self._kept or self._on_disk is None:
            return self._kept.get(name)
        return self._on_disk.get(name, activation_dtype(self._cfg))

    def _keep(self, name: bytes, entry: np.ndarray) -> None:
        if name in self._kept:
            self._kept.move_to_end(name)
            return
        # A copy: a view would hold all that were read at once.
        self._kept[name] = entry.copy()
        self.held_bytes += entry.nbytes
        while self.held_bytes > self._most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.held_bytes -= oldest.nbytes


@functools.partial(jax.jit, static_argnums=0)
def _encode(cfg: ModelConfig, params, tokens_PR):
    return parameters.rebuild(cfg, params).encode(tokens_PR)


@functools.partial(jax.jit, static_argnums=0)
def _lower(cfg: ModelConfig, params, inputs_BL, segments_BL):
    return parameters.rebuild(cfg, params).lower(inputs_BL, segments_BL)
