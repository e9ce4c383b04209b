"""How much of a gain is copying: the same losses on text that has more or less to copy.

Letters here: X chunks.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Bool, Int

from data_pipeline.database import Snapshot
from data_pipeline.sequences.overlap import GRAM_LEN, Grams, longest_common_run
from experiments.config import Experiment
from retro_jax.evaluation import ChunkLosses, interval
from retro_jax.training.batch import Batch

# Chunks that share at most this part of their tokens, in one run, with what was retrieved
# for them count as not overlapping (paper, section 2.6 and figure 6).
_LITTLE_OVERLAP_SHARE = 0.125
_SHARES = (_LITTLE_OVERLAP_SHARE, 0.25, 0.5, 0.75, 1.0)  # alpha of the paper's curves
_RUN_BINS = (0, 8, 16)  # tokens of the longest run from which a bin begins

Losses = Mapping[str, ChunkLosses]


def compared(found: ChunkLosses, off: ChunkLosses, seed: int) -> dict:
    """Bits per byte of a condition, alone and beside retrieval off, as JSON."""
    return {
        "bits_per_byte": found.bits_per_byte(),
        "interval": interval(found, seed=seed),
        "minus_off": found.bits_per_byte() - off.bits_per_byte(),
        "minus_off_interval": interval(found, off, seed=seed),
    }


def _on_some(losses: Losses, keep_X: Bool[np.ndarray, " X"], seed: int) -> dict:
    """The conditions on some of the chunks, as JSON."""
    keep_X = keep_X & (losses["off"].tokens_X > 0)
    off = losses["off"].where(keep_X)
    return {
        "chunks": int(keep_X.sum()),
        "bytes": float(off.bytes_X.sum()),
        "conditions": {
            name: compared(of_all.where(keep_X), off, seed)
            for name, of_all in losses.items()
        }
        if keep_X.any()
        else {},
    }


def by_longest_run(
    losses: Losses, longest_X: Int[np.ndarray, " X"], seed: int
) -> list[dict]:
    """The conditions on chunks that have more or less to copy, as JSON."""
    ends = (*_RUN_BINS[1:], None)
    return [
        {
            "from_tokens": low,
            "below_tokens": end,
            **_on_some(
                losses, (longest_X >= low) & (longest_X < (end or np.inf)), seed
            ),
        }
        for low, end in zip(_RUN_BINS, ends, strict=True)
    ]


def by_overlap(
    losses: Losses, longest_X: Int[np.ndarray, " X"], chunk_len: int, seed: int
) -> list[dict]:
    """The conditions on chunks of which at most a share stands in one run in a passage.

    'gain_kept' is the gain there as a part of the gain on all chunks, per byte.
    """
    found = [
        {
            "at_most": share,
            **_on_some(losses, longest_X <= share * chunk_len, seed),
        }
        for share in _SHARES
    ]
    whole = found[-1]["conditions"]
    for each in found:
        for name, values in each["conditions"].items():
            gain = whole[name]["minus_off"]
            values["gain_kept"] = values["minus_off"] / gain if gain else None
    return found


def decontaminated(
    losses: Losses, held_out: Iterable[Batch], database: Snapshot, seed: int
) -> dict:
    """The conditions on chunks none of whose grams stands in the database, as JSON."""
    batches = list(held_out)
    inputs_BL = np.concatenate([batch["inputs_BL"] for batch in batches])
    segments_BL = np.concatenate([batch["segments_BL"] for batch in batches])
    documents_BC = np.concatenate([batch["documents_BC"] for batch in batches])
    stands_BL = Grams(inputs_BL, segments_BL).standing_in(database)
    stands_XM = stands_BL.reshape(documents_BC.size, -1)
    is_clean_X = np.asarray(stands_XM.sum(axis=1) == 0)
    return {"gram_tokens": GRAM_LEN, **_on_some(losses, is_clean_X, seed)}


def has_little_overlap(
    cfg: Experiment, longest_X: Int[np.ndarray, " X"]
) -> Bool[np.ndarray, " X"]:
    """Tells for each chunk whether there was little to copy for it (paper, 2.6)."""
    return longest_X <= _LITTLE_OVERLAP_SHARE * cfg.model.chunk_len


def longest_runs(cfg: Experiment, held_out: Iterable[Batch]) -> Int[np.ndarray, " X"]:
    """Gives each chunk's longest run of tokens that stands in a passage.

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
        parts.append(runs)
    return np.concatenate(parts)
