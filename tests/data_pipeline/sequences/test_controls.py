"""Controls change the passages that they say they change, and nothing else."""

import functools

import numpy as np
import pytest

from data_pipeline.sequences import controls, held_out
from retro_jax import evaluation
from retro_jax.model import parameters
from tests import tiny_corpus, tiny_model

CHUNK_LEN, PASSAGE_LEN = 8, 16
_NEIGHBOURS = ("neighbours_BCNR", "neighbour_lengths_BCN", "neighbour_ids_BCN")


@pytest.fixture(scope="module")
def originals(tiny_database, tiny_corpus_folder):
    """The test split's batches of four sequences."""
    text = held_out.text_of_split(tiny_database.snapshot, "test")
    cfg = tiny_corpus.config(tiny_corpus_folder)
    sequences = held_out.HeldOut(text, tiny_database.snapshot, cfg)
    return list(sequences.in_order(4))


def _assert_same_text(before, after, changed=_NEIGHBOURS):
    for name in before.keys() - set(changed):
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_random_neighbours_keep_presence_and_change_the_passage(
    originals, tiny_database
):
    snapshot = tiny_database.snapshot
    drawn = list(controls.with_random_neighbours(iter(originals * 5), snapshot, seed=0))
    for before, after in zip(originals * 5, drawn, strict=True):
        ids, other = before["neighbour_ids_BCN"], after["neighbour_ids_BCN"]
        was_there = before["neighbour_lengths_BCN"] > 0
        np.testing.assert_array_equal(after["neighbour_lengths_BCN"] > 0, was_there)
        assert (ids != other)[was_there].all()
        tokens, wanted = snapshot.chunks().passages(
            np.where(was_there, other, -1), PASSAGE_LEN
        )
        np.testing.assert_array_equal(after["neighbours_BCNR"], tokens)
        np.testing.assert_array_equal(after["neighbour_lengths_BCN"], wanted)
        _assert_same_text(before, after)
    everything = np.concatenate([batch["neighbour_ids_BCN"] for batch in drawn])
    assert len(np.unique(everything)) > 100
    for seed, same in ((0, True), (1, False)):
        again = next(
            controls.with_random_neighbours(iter(originals), snapshot, seed=seed)
        )
        ids = again["neighbour_ids_BCN"]
        assert np.array_equal(ids, drawn[0]["neighbour_ids_BCN"]) == same


def test_shuffled_neighbours_are_those_of_another_sequence_of_other_documents(
    originals, tiny_database
):
    shuffled = list(
        controls.with_shuffled_neighbours(
            originals, originals, tiny_database.snapshot, seed=0
        )
    )
    ids_SCN = np.concatenate([batch["neighbour_ids_BCN"] for batch in originals])
    documents_SC = np.concatenate([batch["documents_BC"] for batch in originals])
    row = moved = 0
    for before, after in zip(originals, shuffled, strict=True):
        _assert_same_text(before, after)
        for ids_CN, own_CN in zip(
            after["neighbour_ids_BCN"], before["neighbour_ids_BCN"], strict=True
        ):
            real = documents_SC[row][documents_SC[row] >= 0]
            sources = [
                other
                for other in range(len(ids_SCN))
                if np.array_equal(ids_CN, np.where(own_CN >= 0, ids_SCN[other], -1))
                and not np.isin(documents_SC[other], real).any()
            ]
            assert sources or not len(real)
            moved += (ids_CN != own_CN).any()
            row += 1
    assert moved > row / 2
    tokens, lengths = tiny_database.snapshot.chunks().passages(
        shuffled[0]["neighbour_ids_BCN"], PASSAGE_LEN
    )
    np.testing.assert_array_equal(shuffled[0]["neighbours_BCNR"], tokens)
    np.testing.assert_array_equal(shuffled[0]["neighbour_lengths_BCN"], lengths)


def test_a_sequence_that_shares_a_document_with_all_others_gets_none():
    documents_SC = np.array([[0, 0], [0, 1], [1, 2], [-1, -1]])
    partners = controls._partners(documents_SC, np.random.default_rng(0))
    assert partners.tolist() == [2, -1, 0, -1]


def test_halves_of_passages_are_all_that_is_seen(originals):
    """The other half may say what it will."""
    half = CHUNK_LEN
    for make, first, end in (
        (controls.with_matches_alone, 0, half),
        (controls.with_continuations_alone, half, 2 * half),
    ):
        for before, after in zip(originals, make(originals, half), strict=True):
            _assert_same_text(before, after)
            lengths_BCN = np.clip(before["neighbour_lengths_BCN"] - first, 0, half)
            np.testing.assert_array_equal(after["neighbour_lengths_BCN"], lengths_BCN)
            is_seen = np.arange(2 * half) < lengths_BCN[..., None]
            of_half = np.zeros_like(before["neighbours_BCNR"])
            of_half[..., :half] = before["neighbours_BCNR"][..., first:end]
            np.testing.assert_array_equal(
                np.where(is_seen, after["neighbours_BCNR"], -1),
                np.where(is_seen, of_half, -1),
            )
            assert is_seen.any()


def test_the_true_text_is_the_chunk_and_what_follows_in_its_document(originals):
    (before,) = originals[:1]
    (after,) = controls.with_true_text([before])
    _assert_same_text(before, after, (*_NEIGHBOURS, "neighbour_distances_BCN"))
    for row, chunk in np.ndindex(before["documents_BC"].shape):
        length = after["neighbour_lengths_BCN"][row, chunk, 0]
        there = slice(chunk * CHUNK_LEN, chunk * CHUNK_LEN + length)
        own = before["segments_BL"][row, there]
        assert (own == own[:1]).all() and (own > 0).all()
        np.testing.assert_array_equal(
            after["neighbours_BCNR"][row, chunk, 0, :length],
            before["inputs_BL"][row, there],
        )
        behind = before["segments_BL"][row, there.stop : there.stop + 1]
        is_cut = length < PASSAGE_LEN and len(behind) and length
        assert not is_cut or behind[0] != own[0]
    np.testing.assert_array_equal(
        after["neighbours_BCNR"][:, :, 1:], before["neighbours_BCNR"][:, :, 1:]
    )
    assert not after["neighbour_distances_BCN"][:, :, 0].any()


def test_stale_neighbours_are_those_of_the_chunk_before_in_its_document(originals):
    changed = (*_NEIGHBOURS, "neighbour_distances_BCN")
    num_stale = 0
    for before, after in zip(
        originals, controls.with_stale_neighbours(originals), strict=True
    ):
        _assert_same_text(before, after, changed)
        documents_BC = before["documents_BC"]
        for row, chunk in np.ndindex(documents_BC.shape):
            is_first = (
                chunk == 0 or documents_BC[row, chunk - 1] != documents_BC[row, chunk]
            )
            asked = chunk if is_first else chunk - 1
            num_stale += not is_first
            for name in changed:
                np.testing.assert_array_equal(
                    after[name][row, chunk], before[name][row, asked]
                )
    assert num_stale > 20


def test_fewer_neighbours_are_the_nearest(originals):
    (found,) = controls.with_fewer_neighbours(originals[:1], 1)
    for name in (*_NEIGHBOURS, "neighbour_distances_BCN"):
        np.testing.assert_array_equal(found[name], originals[0][name][:, :, :1])


@functools.cache
def _copier():
    """A model that copies before it has learnt anything."""
    cfg = tiny_model.config(
        vocab_size=64,
        chunk_len=CHUNK_LEN,
        neighbour_len=PASSAGE_LEN,
        width=128,
        encoder_width=128,
        head_size=64,
        encoder_head_size=64,
        depth=2,
        cca_layers=(2,),
        encoder_depth=1,
        share_embeddings=True,
        tie_output=True,
        copy_init=True,
    )
    return cfg, parameters.initial_parameters(cfg, 0)


def test_a_canary_is_far_below_what_other_passages_give():
    """Of a model that copies, on text that nothing else foretells."""
    cfg, params = _copier()
    rng = np.random.default_rng(0)
    texts_BL = np.stack([rng.permutation(64)[: 4 * CHUNK_LEN + 1] for _ in range(8)])
    shape = (8, 4, 1)
    batch = {
        "inputs_BL": texts_BL[:, :-1].astype(np.int32),
        "targets_BL": texts_BL[:, 1:].astype(np.int32),
        "loss_weights_BL": np.ones((8, 4 * CHUNK_LEN), np.float32),
        "target_bytes_BL": np.ones((8, 4 * CHUNK_LEN), np.int32),
        "segments_BL": np.ones((8, 4 * CHUNK_LEN), np.int32),
        "documents_BC": np.repeat(np.arange(8)[:, None], 4, axis=1),
        "neighbours_BCNR": rng.integers(0, 64, (*shape, PASSAGE_LEN), np.int32),
        "neighbour_lengths_BCN": np.full(shape, PASSAGE_LEN, np.int32),
        "neighbour_distances_BCN": np.ones(shape, np.float32),
    }

    def bits(batches, *, retrieval=True):
        losses = evaluation.chunk_losses(
            cfg, params, tiny_model.mesh(1, 1), batches, retrieval=retrieval
        )
        # The first chunk of a sequence reads nothing.
        return losses.bits_per_byte(np.arange(32) % 4 > 0)

    off = bits([batch], retrieval=False)
    others, canary = bits([batch]), bits(controls.with_true_text([batch]))
    assert canary < off - 0.3 < off - 0.1 < others
