"""The mixture is that of a plain computation; no document chooses how it is mixed itself.

Letters here: P passages.
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
    batch["neighbour_lengths_BCN"][:] = [
        [[8, 3], [5, 0], [1, 2]],
        [[0, 0], [8, 8], [2, 8]],
    ]
    return batch


def _losses(batch):
    return knn_lm.chunk_losses(
        CFG, PARAMS, tiny_model.mesh(1, 1), [batch], mixtures=MIXTURES
    )


@jax.jit
def _states(tokens_BL, segments_BL):
    """Hidden states of texts without neighbours, and their logits."""
    model = parameters.rebuild(CFG, PARAMS)
    states_BLD = model.last(tokens_BL, segments_BL)
    return states_BLD, model.read_out(states_BLD)


def _plain_nats(batch, share, temperature) -> np.ndarray:
    """Each target's loss, by loops."""
    states_BLD, logits_BLV = _states(batch["inputs_BL"], batch["segments_BL"])
    states_BLD = np.asarray(states_BLD)
    shares_BLV = np.exp(np.asarray(logits_BLV, np.float64))
    shares_BLV /= shares_BLV.sum(axis=-1, keepdims=True)
    passages_PR = batch["neighbours_BCNR"].reshape(-1, CFG.neighbour_len)
    keys_PRD, _ = _states(passages_PR, np.ones_like(passages_PR))
    keys_BCNRD = np.asarray(keys_PRD).reshape(*batch["neighbours_BCNR"].shape, -1)
    size = float(np.square(np.asarray(PARAMS["norm/scale_D"])).sum())
    segments_BL, found = batch["segments_BL"], np.zeros(states_BLD.shape[:2])
    for row, place in np.ndindex(found.shape):
        target = batch["targets_BL"][row, place]
        share_of_target = shares_BLV[row, place, target]
        chunk = (place + 1) // CFG.chunk_len - 1
        near, is_target = [], []
        own = segments_BL[row, place]
        if chunk >= 0 and segments_BL[row, chunk * CFG.chunk_len] == own:
            for tokens_R, length, keys_RD in zip(
                batch["neighbours_BCNR"][row, chunk],
                batch["neighbour_lengths_BCN"][row, chunk],
                keys_BCNRD[row, chunk],
                strict=True,
            ):
                for at in range(length - 1):
                    apart = np.square(states_BLD[row, place] - keys_RD[at]).sum()
                    near.append(np.exp(-apart / size / temperature))
                    is_target.append(tokens_R[at + 1] == target)
        if near:
            of_near = sum(
                n for n, is_one in zip(near, is_target, strict=True) if is_one
            )
            share_of_target = (1 - share) * share_of_target + share * of_near / sum(
                near
            )
        found[row, place] = -np.log(share_of_target)
    return found


def test_the_mixture_equals_a_plain_computation():
    batch = _batch()
    losses = _losses(batch)
    for mixture in MIXTURES:
        nats_BL = _plain_nats(batch, *mixture) * batch["loss_weights_BL"]
        wanted = nats_BL.reshape(-1, CFG.chunk_len).sum(axis=1)
        np.testing.assert_allclose(losses[mixture].loss_nats_X, wanted, rtol=1e-4)
        np.testing.assert_array_equal(losses[mixture].documents_X, [0, 0, 1, 1, 1, 1])


def test_without_passages_it_is_the_decoder():
    batch = _batch()
    batch["neighbour_lengths_BCN"][:] = 0
    off = evaluation.chunk_losses(
        CFG, PARAMS, tiny_model.mesh(1, 1), [batch], retrieval=False
    )
    for found in _losses(batch).values():
        np.testing.assert_allclose(found.loss_nats_X, off.loss_nats_X, rtol=1e-5)
        np.testing.assert_array_equal(found.bytes_X, off.bytes_X)
        np.testing.assert_array_equal(found.tokens_X, off.tokens_X)


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
