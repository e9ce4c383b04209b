"""When a passage is not worth reading: too far from what asked for it, or asked by little.

What is cut off counts as absent, so that retrieval is then off, exactly. Where to cut is
chosen on the validation split after training and kept in the run's folder.

Letters here: X chunks, P pairs of limits.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from data_pipeline.storage.files import read_json
from experiments.config import Experiment
from retro_jax import evaluation, generation
from retro_jax.training.batch import Batch

FILE = "reading.json"
_QUANTILES = (0.25, 0.5, 0.75, 0.9, 1.0)
_LEAST_TOKENS = (1, 8, 16, 32)
_FEW_CHUNKS = 8  # of fewer that are so short nothing is learnt


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Which passages are read.

    Attributes:
        max_distance: squared distance from which on a passage counts as absent.
        least_tokens: of a chunk; what fewer of them have found counts as absent.
    """

    max_distance: float = np.inf
    least_tokens: int = 1

    def keep(
        self, distances: Float[np.ndarray, "..."], tokens: Int[np.ndarray, "..."]
    ) -> np.ndarray:
        """Tells which passages are read, by their distances and the tokens that asked."""
        return (distances <= self.max_distance) & (tokens >= self.least_tokens)


ALL = Limits()  # every passage is read


def limits(cfg: Experiment, workdir: Path) -> Limits:
    """What a run reads: as it is set, else as was chosen for it, else all."""
    chosen = read_json(workdir / FILE) or {}
    return Limits(
        cfg.evaluation.max_distance or chosen.get("max_distance", np.inf),
        cfg.evaluation.least_tokens or chosen.get("least_tokens", 1),
    )


def within(batches: Iterator[Batch], chosen: Limits) -> Iterator[Batch]:
    """Batches in which neighbours outside of the limits are absent."""
    for batch in batches:
        lengths_BCN = batch["neighbour_lengths_BCN"]
        tokens_BC = _tokens_of_chunks(batch)
        keep = chosen.keep(batch["neighbour_distances_BCN"], tokens_BC[..., None])
        yield {**batch, "neighbour_lengths_BCN": np.where(keep, lengths_BCN, 0)}


def _tokens_of_chunks(batch: Batch) -> Int[np.ndarray, "B C"]:
    num_chunks = batch["neighbour_lengths_BCN"].shape[1]
    segments_BL = batch["segments_BL"]
    return (segments_BL.reshape(len(segments_BL), num_chunks, -1) > 0).sum(axis=-1)


def choose(
    off: evaluation.ChunkLosses,
    on: evaluation.ChunkLosses,
    distances_X: Float[np.ndarray, " X"],
    tokens_X: Int[np.ndarray, " X"],
) -> dict:
    """Chooses the limits with which the least is lost, as JSON with what was compared.

    A chunk whose passages are cut off loses what it loses with retrieval off. Nothing that
    is farther than the farthest passage that was seen is read. A least number of tokens is
    chosen only where some chunks have fewer.

    Args:
        distances_X: of the nearest passage that each chunk reads; infinite if none.
        tokens_X: real tokens of the chunk that asked for it.
    """
    scored_X = (off.tokens_X > 0) & np.isfinite(distances_X)
    if not scored_X.any():
        return {}
    near = np.quantile(distances_X[scored_X], _QUANTILES).tolist()
    shortest = [
        least
        for least in _LEAST_TOKENS
        if least == 1 or (tokens_X[scored_X] < least).sum() >= _FEW_CHUNKS
    ]
    tried = []
    for farthest, least in itertools.product([-1.0, *near], shortest):
        keep_X = Limits(farthest, least).keep(distances_X, tokens_X) & scored_X
        nats = np.where(keep_X, on.loss_nats_X, off.loss_nats_X)[scored_X].sum()
        tried.append(
            {
                "max_distance": farthest,
                "least_tokens": least,
                "bits_per_byte": float(nats / off.bytes_X[scored_X].sum() / np.log(2)),
                "share_read": float(keep_X[scored_X].mean()),
            }
        )
    # Of equals the one that reads most.
    best = min(tried, key=lambda each: (each["bits_per_byte"], -each["share_read"]))
    return {**best, "tried": tried}


def read_by_chunks(
    batches: Iterator[Batch],
) -> tuple[Float[np.ndarray, " X"], Int[np.ndarray, " X"]]:
    """The distance of the nearest passage that each chunk reads, and what asked for it.

    That is the chunk before; the first of a sequence reads nothing.
    """
    distances, tokens = [], []
    for batch in batches:
        lengths_BCN = batch["neighbour_lengths_BCN"]
        nearest_BC = np.where(
            lengths_BCN > 0, batch["neighbour_distances_BCN"], np.inf
        ).min(axis=-1)
        read_BC = np.roll(nearest_BC, 1, axis=1)
        read_BC[:, 0] = np.inf
        distances.append(read_BC.reshape(-1))
        tokens.append(np.roll(_tokens_of_chunks(batch), 1, axis=1).reshape(-1))
    return np.concatenate(distances), np.concatenate(tokens)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """Neighbours of chunks, without those that are not read."""

    tokens_QNR: Int[np.ndarray, "Q N R"]
    lengths_QN: Int[np.ndarray, "Q N"]
    chunk_ids_QN: Int[np.ndarray, "Q N"]
    distances_QN: Float[np.ndarray, "Q N"]


class NearRetriever:
    """A retriever whose neighbours outside of the limits are absent."""

    def __init__(self, retriever: generation.Retriever, chosen: Limits):
        self._retriever, self._chosen = retriever, chosen

    def retrieve(self, tokens_QM: Int[np.ndarray, "Q M"], num_neighbours: int) -> Found:
        """Neighbours of chunks; each row holds the chunk's real tokens alone."""
        found = self._retriever.retrieve(tokens_QM, num_neighbours)
        keep_QN = self._chosen.keep(
            found.distances_QN, np.full(found.distances_QN.shape, tokens_QM.shape[1])
        )
        return Found(
            found.tokens_QNR,
            np.where(keep_QN, found.lengths_QN, 0),
            np.where(keep_QN, found.chunk_ids_QN, -1),
            found.distances_QN,
        )
