"""kNN-LM over a database: what a model gains from its tokens without reading any passage.

The hidden state before each token of the database is a key, and that token its value. A
position's own hidden state looks for the nearest of all keys, exactly, and what it finds is mixed
with what the decoder alone says:

    p(w) = (1 - share) p_decoder(w) + share * sum of softmax(-d^2 / T) over keys with value w

Keys are made block by block and compared at once: nothing is kept but what is nearest so far.

Source: Khandelwal et al. 2020 (arXiv 1911.00172), who also take 1,024 keys.
Letters here: Q positions that are scored, K keys, A picked rows, P pieces of text, X chunks.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from retro_jax.config import ModelConfig
from retro_jax.devices import sharding
from retro_jax.evaluation import ChunkLosses
from retro_jax.model import parameters
from retro_jax.numerics.token_loss import cross_entropy
from retro_jax.training.batch import Batch, model_inputs, without_neighbours

MOST_KEYS = 1024  # of a position
POSITION_BYTES = 16 * MOST_KEYS  # of memory that are held for each, see `Nearest`
_POSITIONS = 4096  # that are compared with a block at once


class Mixture(NamedTuple):
    """How what is near is mixed in.

    Attributes:
        share: of the mixture; the decoder has the rest.
        temperature: of the distances, as a part of a key's squared length.
    """

    share: float
    temperature: float


MIXTURES = tuple(
    itertools.starmap(Mixture, itertools.product((0.1, 0.25, 0.5), (0.02, 0.05, 0.15)))
)
Blocks = Iterable[tuple[Int[np.ndarray, "P R"], Int[np.ndarray, "P R"]]]


class _Positions(NamedTuple):
    """What is scored: states, targets and losses of the decoder alone."""

    states_QD: Float[np.ndarray, "Q D"]
    targets_Q: Int[np.ndarray, " Q"]
    alone_Q: Float[np.ndarray, " Q"]
    weights_Q: Float[np.ndarray, " Q"]
    chunks_Q: Int[np.ndarray, " Q"]  # of all batches, one after the other


def chunk_losses(
    cfg: ModelConfig,
    params: parameters.Parameters,
    mesh,
    batches: Iterable[Batch],
    blocks: Blocks,
    *,
    mixtures: tuple[Mixture, ...] = MIXTURES,
    most_keys: int = MOST_KEYS,
    advance: Callable[[int], None] = lambda pieces: None,
) -> dict[Mixture, ChunkLosses]:
    """What each mixture loses on every chunk; one pass over the database makes all of them.

    Args:
        batches: the text that is measured.
        blocks: the database: tokens of pieces that are read by themselves, and the token
            behind each of them, or -1 where that is no key.
        most_keys: the nearest ones that count.
        advance: called with the number of pieces done that have keys.

    Raises:
        ValueError: in a run of several processes.
    """
    if jax.process_count() > 1:
        raise ValueError("kNN-LM is measured in one process: leave knn out")
    size = float(np.square(np.asarray(params["norm/scale_D"], np.float32)).sum())
    with jax.set_mesh(mesh):
        found, sums = _read(cfg, params, mesh, batches)
        nearest = Nearest(len(found.targets_Q), most_keys)
        for tokens_PR, behind_PR in blocks:
            keys_PRD = sharding.on_host(_states(cfg, params, jnp.asarray(tokens_PR)))
            is_key_PR = behind_PR >= 0
            _compare(
                found.states_QD, keys_PRD[is_key_PR], behind_PR[is_key_PR], nearest
            )
            advance(int(is_key_PR.any(axis=1).sum()))
    counted = (sums["bytes"], sums["tokens"], sums["documents"])
    losses = {}
    for mixture in mixtures:
        shares_Q = nearest.shares_of(found.targets_Q, size, mixture)
        nats_X = _summed(found, shares_Q, mixture, len(sums["bytes"]))
        losses[mixture] = ChunkLosses(nats_X, *counted)
    return losses


def chosen_by_halves(
    losses: Mapping[Mixture, ChunkLosses],
) -> tuple[ChunkLosses, tuple[Mixture, ...]]:
    """The loss of half of the documents with what is best on the other half, and what it is.

    So no document has a say in how it is measured itself.
    """
    any_of = next(iter(losses.values()))
    _, rows = np.unique(any_of.documents_X, return_inverse=True)
    is_odd_X = rows % 2 == 1
    chosen = tuple(
        min(losses, key=lambda mixture: losses[mixture].loss_nats_X[others].sum())
        for others in (is_odd_X, ~is_odd_X)
    )
    even, odd = (losses[mixture].loss_nats_X for mixture in chosen)
    nats_X = np.where(is_odd_X, odd, even)
    return (
        ChunkLosses(nats_X, any_of.bytes_X, any_of.tokens_X, any_of.documents_X),
        chosen,
    )


class Nearest:
    """The nearest keys of each position, of all that it was shown.

    It holds 16 bytes for each key that is kept, of every position.
    """

    def __init__(self, num_positions: int, most: int):
        """Knows no key yet.

        Args:
            most: keys that are kept of each position.
        """
        self.most = most
        # Room for as many again: only when it is full the farther half goes.
        self._near_QK = np.full((num_positions, 2 * most), -np.inf, np.float32)
        self._tokens_QK = np.zeros((num_positions, 2 * most), np.int32)
        self._filled_Q = np.zeros(num_positions, np.int64)
        self._least_Q = np.full(num_positions, -np.inf, np.float32)

    def show(
        self,
        first: int,
        near_QK: Float[np.ndarray, "Q K"],
        tokens_K: Int[np.ndarray, " K"],
    ) -> None:
        """Shows at most `most` keys to positions from `first` on: how near, and their tokens."""
        mine = slice(first, first + len(near_QK))
        rows_A, keys_A = np.nonzero(near_QK > self._least_Q[mine, None])
        counts_Q = np.bincount(rows_A, minlength=len(near_QK))
        is_full_Q = self._filled_Q[mine] + counts_Q > 2 * self.most
        self._make_room(first + np.flatnonzero(is_full_Q))
        before_Q = np.cumsum(counts_Q) - counts_Q
        places_A = self._filled_Q[mine][rows_A] + np.arange(len(rows_A))
        places_A -= before_Q[rows_A]
        self._near_QK[first + rows_A, places_A] = near_QK[rows_A, keys_A]
        self._tokens_QK[first + rows_A, places_A] = tokens_K[keys_A]
        self._filled_Q[mine] += counts_Q

    def _make_room(self, rows_A: Int[np.ndarray, " A"]) -> None:
        """Lets go what is not among the nearest of these positions."""
        near_AK = self._near_QK[rows_A]
        order_AK = np.argpartition(-near_AK, self.most - 1, axis=1)[:, : self.most]
        kept_AK = np.take_along_axis(near_AK, order_AK, axis=1)
        tokens_AK = np.take_along_axis(self._tokens_QK[rows_A], order_AK, axis=1)
        self._near_QK[rows_A] = -np.inf
        self._near_QK[rows_A, : self.most] = kept_AK
        self._tokens_QK[rows_A, : self.most] = tokens_AK
        self._filled_Q[rows_A] = np.minimum(self._filled_Q[rows_A], self.most)
        self._least_Q[rows_A] = kept_AK.min(axis=1)

    def shares_of(
        self, targets_Q: Int[np.ndarray, " Q"], size: float, mixture: Mixture
    ) -> Float[np.ndarray, " Q"]:
        """The share of the softmax that keys of the target have; NaN without keys.

        Args:
            size: the squared length of a key.
        """
        self._make_room(np.arange(len(targets_Q)))
        shares_Q = np.full(len(targets_Q), np.nan)
        for start in range(0, len(targets_Q), _POSITIONS):
            there = slice(start, start + _POSITIONS)
            near_QK = self._near_QK[there, : self.most].astype(np.float64)
            largest_Q = near_QK.max(axis=1)
            has_keys_Q = np.isfinite(largest_Q)
            apart_QK = near_QK - np.where(has_keys_Q, largest_Q, 0.0)[:, None]
            weights_QK = np.exp(apart_QK / (size * mixture.temperature))
            tokens_QK = self._tokens_QK[there, : self.most]
            is_target_QK = tokens_QK == targets_Q[there, None]
            whole_Q = weights_QK.sum(axis=1)
            of_target_Q = (weights_QK * is_target_QK).sum(axis=1)
            shares_Q[there] = np.divide(
                of_target_Q,
                whole_Q,
                out=np.full(len(whole_Q), np.nan),
                where=has_keys_Q,
            )
        return shares_Q


def _read(
    cfg: ModelConfig, params, mesh, batches: Iterable[Batch]
) -> tuple[_Positions, dict[str, np.ndarray]]:
    """The positions that are scored, and sums over the chunks of all batches."""
    parts, chunks = [], 0
    sums: dict[str, list[np.ndarray]] = {"bytes": [], "tokens": [], "documents": []}
    for batch in batches:
        inputs = without_neighbours(model_inputs(batch))
        states, alone = _alone(cfg, params, sharding.to_devices(inputs, mesh))
        weights_BL = batch["loss_weights_BL"]
        is_scored_BL = weights_BL > 0
        places_BL = np.arange(weights_BL.size).reshape(weights_BL.shape)
        parts.append(
            _Positions(
                np.asarray(sharding.on_host(states), np.float32)[is_scored_BL],
                batch["targets_BL"][is_scored_BL],
                np.asarray(sharding.on_host(alone), np.float64)[is_scored_BL],
                weights_BL[is_scored_BL],
                chunks + places_BL[is_scored_BL] // cfg.chunk_len,
            )
        )
        chunks += weights_BL.size // cfg.chunk_len
        counted_BL = batch["target_bytes_BL"] * weights_BL
        for name, values_BL in (("bytes", counted_BL), ("tokens", weights_BL)):
            by_chunk = values_BL.reshape(-1, cfg.chunk_len).sum(axis=1)
            sums[name].append(by_chunk.astype(np.float64))
        sums["documents"].append(batch["documents_BC"].reshape(-1))
    joined = _Positions(*map(np.concatenate, zip(*parts, strict=True)))
    return joined, {name: np.concatenate(values) for name, values in sums.items()}


def _compare(
    states_QD: Float[np.ndarray, "Q D"],
    keys_KD: Float[np.ndarray, "K D"],
    tokens_K: Int[np.ndarray, " K"],
    nearest: Nearest,
) -> None:
    """Shows keys to all positions: minus the squared distances, but for what all keys share."""
    keys_KD = np.asarray(keys_KD, np.float32)
    lengths_K = np.square(keys_KD).sum(axis=1)
    for some in range(0, len(tokens_K), nearest.most):
        keys = slice(some, some + nearest.most)
        for first in range(0, len(states_QD), _POSITIONS):
            near_QK = states_QD[first : first + _POSITIONS] @ keys_KD[keys].T
            near_QK = 2 * near_QK - lengths_K[keys]
            nearest.show(first, near_QK, tokens_K[keys])


def _summed(
    found: _Positions,
    shares_Q: Float[np.ndarray, " Q"],
    mixture: Mixture,
    num_chunks: int,
) -> Float[np.ndarray, " X"]:
    """Losses of the mixture over chunks; the decoder's where there is no key."""
    share, alone_Q = mixture.share, found.alone_Q
    mixed_Q = -np.log((1 - share) * np.exp(-alone_Q) + share * shares_Q)
    nats_Q = np.where(np.isnan(shares_Q), alone_Q, mixed_Q) * found.weights_Q
    return np.bincount(found.chunks_Q, weights=nats_Q, minlength=num_chunks)


@functools.partial(jax.jit, static_argnums=0)
def _alone(cfg: ModelConfig, params, batch):
    """States and losses of the decoder without passages."""
    model = parameters.rebuild(cfg, params)
    states_BLD = model.last(batch["inputs_BL"], batch["segments_BL"])
    losses_BL = cross_entropy(model.read_out(states_BLD), batch["targets_BL"])
    return states_BLD.astype(jnp.float32), losses_BL


@functools.partial(jax.jit, static_argnums=0)
def _states(cfg: ModelConfig, params, tokens_BL):
    """The states of pieces of text, each read by itself."""
    model = parameters.rebuild(cfg, params)
    return model.last(tokens_BL, jnp.ones_like(tokens_BL)).astype(jnp.float32)
