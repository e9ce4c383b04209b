"""A batch on the host, and what of it goes to the devices.

`DESIGN.md`, "Batch", has the table of its arrays.
"""

import jax
import numpy as np

from retro_jax.config import ModelConfig
from retro_jax.devices import sharding

Batch = dict[str, np.ndarray]

_NEIGHBOURS = ("neighbours_BCNR", "neighbour_lengths_BCN")
_MODEL_INPUTS = (
    "inputs_BL",
    "targets_BL",
    "loss_weights_BL",
    "target_bytes_BL",
    "segments_BL",
    *_NEIGHBOURS,
)


def model_inputs(batch: Batch) -> Batch:
    """The arrays that model and loss read; evaluation's bookkeeping is left out."""
    return {name: batch[name] for name in _MODEL_INPUTS if name in batch}


def without_neighbours(batch: Batch) -> Batch:
    """The batch as retrieval off reads it: the step of the decoder alone."""
    return {name: array for name, array in batch.items() if name not in _NEIGHBOURS}


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
