"""A batch on the host, and what of it goes to the devices.

`DESIGN.md`, "Batch", has the table of its arrays.
"""

from typing import NamedTuple, TypeVar

import jax
import numpy as np

from retro_jax.config import ModelConfig
from retro_jax.devices import sharding
from retro_jax.training.number_tokens import NumberTokens

Batch = dict[str, np.ndarray]
_AnyArray = TypeVar("_AnyArray")  # of the host, of devices, or traced

_NEIGHBOURS = ("neighbours_BCNR", "neighbour_lengths_BCN")
_ENCODED = "encoded_BCNTSE"  # what `Encodings` makes of them beforehand
_UNRELATED = "unrelated_BC"  # chunks whose neighbours are another's, where that is told
_MODEL_INPUTS = (
    "inputs_BL",
    "targets_BL",
    "loss_weights_BL",
    "target_bytes_BL",
    "segments_BL",
    *_NEIGHBOURS,
)


class Rows(NamedTuple):
    """Which rows of a batch a process has.

    What is drawn is drawn for the whole batch, so that a row is the same however many
    processes share it out.
    """

    batch_size: int
    mine_B: np.ndarray

    @classmethod
    def all_of(cls, batch_size: int) -> "Rows":
        """Those of a process that has the whole batch."""
        return cls(batch_size, np.arange(batch_size))


def model_inputs(batch: Batch) -> Batch:
    """The arrays that model and loss read; evaluation's bookkeeping is left out."""
    return {name: batch[name] for name in _MODEL_INPUTS if name in batch}


def without_neighbours(batch: dict[str, _AnyArray]) -> dict[str, _AnyArray]:
    """The batch as retrieval off reads it: the step of the decoder alone."""
    left_out = (*_NEIGHBOURS, _ENCODED, _UNRELATED)
    return {name: array for name, array in batch.items() if name not in left_out}


def with_worse_neighbours(
    batch: Batch,
    absent_share: float,
    unrelated_share: float,
    rng: np.random.Generator,
    rows: Rows,
    *,
    are_told: bool = False,
) -> Batch:
    """The batch in which some chunks have no neighbours and some have another chunk's.

    A model that is always given passages of its own subject learns to copy whatever it is
    given. The others' are of another row where this process has several.

    Args:
        are_told: the batch gets `unrelated_BC`, which marks the chunks with another's.
    Source: ours.
    """
    lengths_BCN = batch.get("neighbour_lengths_BCN")
    if lengths_BCN is None or absent_share + unrelated_share == 0:
        return batch
    if absent_share == 1:  # a step that reads nothing computes nothing of it either
        return {name: batch[name] for name in batch if name not in _NEIGHBOURS}
    batch_size, num_chunks, _ = lengths_BCN.shape
    drawn_BC = rng.random((rows.batch_size, num_chunks))[rows.mine_B]
    total = batch_size * num_chunks
    shift = rng.integers(num_chunks, total - num_chunks + 1) if batch_size > 1 else 1
    is_unrelated_BC = drawn_BC >= 1 - unrelated_share

    def exchanged(values):
        others = np.roll(values.reshape(total, *values.shape[2:]), shift, axis=0)
        mask = is_unrelated_BC.reshape(
            batch_size, num_chunks, *(1,) * (values.ndim - 2)
        )
        return np.where(mask, others.reshape(values.shape), values)

    changed = {name: exchanged(batch[name]) for name in _NEIGHBOURS}
    is_absent_BC = drawn_BC < absent_share
    changed["neighbour_lengths_BCN"] = np.where(
        is_absent_BC[..., None], 0, changed["neighbour_lengths_BCN"]
    )
    if are_told:
        changed[_UNRELATED] = is_unrelated_BC
    return {**batch, **changed}


def with_oracle_neighbours(
    cfg: ModelConfig,
    batch: Batch,
    share: float,
    rng: np.random.Generator,
    rows: Rows,
) -> Batch:
    """The batch in which some chunks' first neighbour is the text that goes on from them.

    A model learns from it to look for what goes on from its own words, where the neighbours
    that are found tell too little. Such a passage begins up to a chunk before its chunk, so
    that what is looked for is never at the same place.
    Source: ours.
    """
    lengths_BCN = batch.get("neighbour_lengths_BCN")
    if lengths_BCN is None or not share:
        return batch
    neighbours_BCNR, lengths_BCN = batch["neighbours_BCNR"].copy(), lengths_BCN.copy()
    drawn_2BC = rng.random((2, rows.batch_size, lengths_BCN.shape[1]))
    drawn_BC, before_BC = drawn_2BC[:, rows.mine_B]
    for row, chunk in np.argwhere(drawn_BC < share):
        middle = chunk * cfg.chunk_len
        start = max(middle - int(before_BC[row, chunk] * cfg.chunk_len), 0)
        there = slice(start, start + neighbours_BCNR.shape[-1])
        # It ends and begins with the document of the chunk's end, from where it is read.
        segments = batch["segments_BL"][row]
        own = segments[middle + cfg.chunk_len - 1]
        passage = batch["inputs_BL"][row, there][(segments[there] == own) & (own > 0)]
        neighbours_BCNR[row, chunk] = np.roll(neighbours_BCNR[row, chunk], 1, axis=0)
        lengths_BCN[row, chunk] = np.roll(lengths_BCN[row, chunk], 1)
        neighbours_BCNR[row, chunk, 0, : len(passage)] = passage
        lengths_BCN[row, chunk, 0] = len(passage)
    return {
        **batch,
        "neighbours_BCNR": neighbours_BCNR,
        "neighbour_lengths_BCN": lengths_BCN,
    }


def with_other_numbers(
    batch: Batch,
    share: float,
    numbers: NumberTokens,
    rng: np.random.Generator,
    rows: Rows,
) -> Batch:
    """The batch in which some rows have other numbers, in the text and its neighbours alike.

    What a decoder knows of numbers is of no help there: only the neighbours tell them. So
    a model learns to believe what it reads, and to look for it with more than one word.
    Source: ours; see `NumberTokens`.
    """
    if not share or "neighbours_BCNR" not in batch:
        return batch
    names = ("inputs_BL", "targets_BL", "neighbours_BCNR")
    changed = {name: batch[name].copy() for name in names}
    for row in np.flatnonzero(rng.random(rows.batch_size) < share):
        token_V = numbers.exchanged(rng)
        for mine in np.flatnonzero(rows.mine_B == row):
            for array in changed.values():
                array[mine] = token_V[array[mine]]
    return {**batch, **changed}


def to_devices(cfg: ModelConfig, batch: Batch, mesh) -> dict[str, jax.Array]:
    """Global arrays of this process's rows; neighbours only if the model can read any.

    So a batch whose neighbours are all absent costs what it does without retrieval, in a
    step that is compiled when the first such batch comes. Where several processes share
    the devices none knows the others' rows, and all must run the same step. There whoever
    makes the batches leaves out what is absent in all of them; else it is masked.
    """
    lengths_BCN = batch.get("neighbour_lengths_BCN")
    absent = lengths_BCN is None or (jax.process_count() == 1 and not lengths_BCN.any())
    if absent or not cfg.cca_layers:
        batch = without_neighbours(batch)
    return sharding.to_devices(batch, mesh)
