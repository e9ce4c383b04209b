"""The mixture is that of a plain computation; no document chooses how it is mixed itself.

Letters here: P pieces.
"""

import jax
import numpy as np
import pytest

from retro_jax import evaluation, knn_lm
from retro_jax.evaluation import ChunkLosses
from retro_jax.knn_lm import Mixture
from retro_jax.model import parameters
from tests import tiny_model

CFG = tiny_model.small_config(vocab_size=16)
PARAMS = tiny_model.parameters(CFG)
MIXTURES = (Mixture(0.3, 0.1), Mixture(0.5, 1.0))


def _batch():
    batch = tiny_model.batch(CFG)
    batch["documents_BC"] = np.array([[0, 0, 1], [1, 1, 1]], np.int64)
    batch["segments_BL"][0, 2 * CFG.chunk_len :] = 2
    batch["loss_weights_BL"][1, :3] = 0
    return batch


def _blocks():
    """Two blocks of a database, with tokens that are nobody's keys."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2):
        tokens_PR = rng.integers(1, 16, (3, 2 * CFG.chunk_len)).astype(np.int32)
        behind_PR = np.full_like(tokens_PR, -1)
        behind_PR[:, :-1] = tokens_PR[:, 1:]
        behind_PR[1, : CFG.chunk_len] = -1
        found.append((tokens_PR, behind_PR))
    return found


def _losses(batch, blocks, most_keys):
    return knn_lm.chunk_losses(
        CFG,
        PARAMS,
        tiny_model.mesh(1, 1),
        [batch],
        blocks,
        mixtures=MIXTURES,
        most_keys=most_keys,
    )


@jax.jit
def _states(tokens_BL, segments_BL):
    """Hidden states of texts without neighbours, and their logits."""
    model = parameters.rebuild(CFG, PARAMS)
    states_BLD = model.last(tokens_BL, segments_BL)
    return states_BLD, model.read_out(states_BLD)


def _plain_nats(batch, blocks, most_keys, mixture) -> np.ndarray:
    """Each target's loss, by loops over all keys."""
    states_BLD, logits_BLV = _states(batch["inputs_BL"], batch["segments_BL"])
    shares_BLV = np.exp(np.asarray(logits_BLV, np.float64))
    shares_BLV /= shares_BLV.sum(axis=-1, keepdims=True)
    keys = []
    for tokens_PR, behind_PR in blocks:
        states_PRD, _ = _states(tokens_PR, np.ones_like(tokens_PR))
        for row, place in np.argwhere(behind_PR >= 0):
            key_D = np.asarray(states_PRD[row, place], np.float64)
            keys.append((key_D, behind_PR[row, place]))
    size = float(np.square(np.asarray(PARAMS["norm/scale_D"])).sum())
    found = np.zeros(batch["targets_BL"].shape)
    for row, place in np.ndindex(found.shape):
        target = batch["targets_BL"][row, place]
        own_D = np.asarray(states_BLD[row, place], np.float64)
        apart = sorted((np.square(own_D - key_D).sum(), w) for key_D, w in keys)
        near = [(np.exp(-d / size / mixture.temperature), w) for d, w in apart]
        near = near[:most_keys]
        of_target = sum(n for n, w in near if w == target) / sum(n for n, _ in near)
        alone = shares_BLV[row, place, target]
        found[row, place] = -np.log(
            (1 - mixture.share) * alone + mixture.share * of_target
        )
    return found


@pytest.mark.parametrize("most_keys", [5, 1000])
def test_the_mixture_equals_a_plain_computation(most_keys):
    batch, blocks = _batch(), _blocks()
    losses = _losses(batch, blocks, most_keys)
    for mixture in MIXTURES:
        nats_BL = _plain_nats(batch, blocks, most_keys, mixture)
        nats_BL *= batch["loss_weights_BL"]
        wanted = nats_BL.reshape(-1, CFG.chunk_len).sum(axis=1)
        np.testing.assert_allclose(losses[mixture].loss_nats_X, wanted, rtol=1e-4)
        np.testing.assert_array_equal(losses[mixture].documents_X, [0, 0, 1, 1, 1, 1])


def test_without_keys_it_is_the_decoder():
    batch = _batch()
    off = evaluation.chunk_losses(
        CFG, PARAMS, tiny_model.mesh(1, 1), [batch], retrieval=False
    )
    for found in _losses(batch, [], 5).values():
        np.testing.assert_allclose(found.loss_nats_X, off.loss_nats_X, rtol=1e-5)
        np.testing.assert_array_equal(found.bytes_X, off.bytes_X)
        np.testing.assert_array_equal(found.tokens_X, off.tokens_X)


def test_the_nearest_of_many_blocks_are_those_of_a_sort():
    rng = np.random.default_rng(1)
    near_QK = rng.standard_normal((7, 90)).astype(np.float32)
    nearest = knn_lm.Nearest(7, 8)
    for start in range(0, 90, 8):  # a last block that is smaller, too
        tokens_K = np.arange(start, min(start + 8, 90))
        for first in (0, 4):  # positions come in parts
            some_QK = near_QK[first : first + 4, start : start + 8]
            nearest.show(first, some_QK[: 7 - first], tokens_K)
    best = np.argsort(-near_QK, axis=1)[:, :8]
    for target in range(90):
        targets_Q = np.full(7, target)
        shares_Q = nearest.shares_of(targets_Q, 1.0, Mixture(0.5, 1.0))
        np.testing.assert_array_equal(shares_Q > 0, (best == target).any(axis=1))


def test_half_of_the_documents_choose_for_the_others():
    def losses(*nats_X):
        ones = np.ones(4)
        return ChunkLosses(np.array(nats_X), ones, ones, np.array([0, 3, 3, 7]))

    first, second = MIXTURES
    # Documents 0 and 7 are better by the second mixture, 3 is by the first.
    found, chosen = knn_lm.chosen_by_halves(
        {first: losses(2.0, 1.0, 1.0, 2.0), second: losses(1.0, 3.0, 3.0, 1.0)}
    )
    assert chosen == (first, second)
    assert found.loss_nats_X.tolist() == pytest.approx([2.0, 3.0, 3.0, 2.0])
