"""A trained model's loss on held-out text: retrieval on, off and with random passages.

Letters here: X chunks.
"""

import itertools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from data_pipeline.database import Database
from data_pipeline.sequences.batches import Sequences, with_random_neighbours
from data_pipeline.sequences.overlap import longest_common_run
from data_pipeline.storage.progress import Progress
from experiments.config import Experiment
from retro_jax import evaluation
from retro_jax.model import parameters
from retro_jax.training.batch import Batch

# Chunks that share at most this part of their tokens, in one run, with what was retrieved
# for them count as not overlapping (paper, section 2.6 and figure 6).
_LITTLE_OVERLAP_SHARE = 0.125


def conditions(
    cfg: Experiment,
    params: parameters.Parameters,
    mesh: jax.sharding.Mesh,
    sequences: Sequences,
    database: Database,
) -> dict:
    """Bits per byte in each condition, with intervals, as JSON.

    'off' skips chunked cross-attention, 'on' reads the neighbours that were found,
    'random' reads passages drawn from the database in their place. A model without
    cross-attention has 'off' alone.
    """
    held_out = {"off": None, "on": None, "random": database}
    if not cfg.model.cca_layers:
        held_out = {"off": None}
    losses = {}
    for name, drawn_from in held_out.items():

        def measure(advance: Callable[[int], None], name=name, drawn_from=drawn_from):
            return evaluation.chunk_losses(
                cfg.model,
                params,
                mesh,
                batches(cfg, sequences, drawn_from),
                retrieval=name != "off",
                advance=advance,
            )

        title = f"retrieval {name}, {cfg.evaluation.split} split"
        with Progress(title, num_sequences(cfg, sequences), "sequences") as progress:
            losses[name] = measure(progress.advance)
    little_X = has_little_overlap(cfg, batches(cfg, sequences))
    off, seed = losses["off"], cfg.evaluation.seed
    scored_X = off.tokens_X > 0
    return {
        "split": cfg.evaluation.split,
        "documents": len(np.unique(off.documents_X[scored_X])),
        "bytes": float(off.bytes_X.sum()),
        "tokens": float(off.tokens_X.sum()),
        "little_overlap_share": float(little_X[scored_X].mean()),
        "conditions": {
            name: {
                "bits_per_byte": measured.bits_per_byte(),
                "interval": evaluation.interval(measured, seed=seed),
                "minus_off": measured.bits_per_byte() - off.bits_per_byte(),
                "minus_off_interval": evaluation.interval(measured, off, seed=seed),
                "little_overlap_bits_per_byte": measured.bits_per_byte(little_X),
            }
            for name, measured in losses.items()
        },
    }


def num_sequences(cfg: Experiment, sequences: Sequences) -> int:
    """The number of sequences of the split that are measured."""
    return min(len(sequences), cfg.evaluation.max_sequences or len(sequences))


def batches(
    cfg: Experiment, sequences: Sequences, drawn_from: Database | None = None
) -> Iterator[Batch]:
    """Batches of the held-out split; neighbours drawn at random, if from a database."""
    size = cfg.evaluation.batch_size
    found = sequences.in_order(size)
    if drawn_from is not None:
        found = with_random_neighbours(found, drawn_from.snapshot, cfg.evaluation.seed)
    return itertools.islice(found, -(-num_sequences(cfg, sequences) // size))


def has_little_overlap(cfg: Experiment, held_out: Iterator[Batch]) -> np.ndarray:
    """Tells for each chunk whether there was little to copy for it (paper, 2.6)."""
    return overlap_shares(cfg, held_out) <= _LITTLE_OVERLAP_SHARE


def overlap_shares(cfg: Experiment, held_out: Iterator[Batch]) -> np.ndarray:
    """Gives each chunk's longest run of tokens that stands in a passage, over M.

    The passages are the chunk's own neighbours and those that it reads, which are the
    neighbours of the chunk before it.
    """
    chunk_len, parts = cfg.model.chunk_len, []
    for batch in held_out:
        inputs_BCM = batch["inputs_BL"].reshape(len(batch["inputs_BL"]), -1, chunk_len)
        lengths_BC = (batch["segments_BL"] > 0).reshape(inputs_BCM.shape).sum(axis=-1)
        own, own_lengths = batch["neighbours_BCNR"], batch["neighbour_lengths_BCN"]
        read, read_lengths = np.roll(own, 1, axis=1), np.roll(own_lengths, 1, axis=1)
        # The first chunk of a sequence reads none; `roll` gave it the last one's.
        read_lengths[:, 0] = 0
        passages = np.concatenate([own, read], axis=2)
        lengths = np.concatenate([own_lengths, read_lengths], axis=2)
        runs = longest_common_run(
            inputs_BCM.reshape(-1, chunk_len),
            passages.reshape(-1, *passages.shape[2:]),
            lengths_BC.reshape(-1),
            lengths.reshape(-1, lengths.shape[2]),
        )
        parts.append(runs / chunk_len)
    return np.concatenate(parts)
