"""What a decoder has read is kept, found again and forgotten."""

import jax
import numpy as np

from retro_jax.training import encodings
from retro_jax.training.batch import without_neighbours
from retro_jax.training.step import token_losses
from tests import tiny_decoder
from tests.tiny_decoder import CHUNK_LEN, NEIGHBOUR_LEN, NUM_NEIGHBOURS, VOCAB_SIZE

CFG, PARAMS = tiny_decoder.config(), tiny_decoder.whole()
ENTRY_BYTES = 4 * len(CFG.cca_layers) * (NEIGHBOUR_LEN + 1) * CFG.width


def make_batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng, shape = np.random.default_rng(seed), (2, 2, NUM_NEIGHBOURS)
    tokens_BL = rng.integers(2, VOCAB_SIZE, (2, 2 * CHUNK_LEN)).astype(np.int32)
    return {
        "inputs_BL": tokens_BL,
        "targets_BL": np.roll(tokens_BL, -1, axis=1),
        "segments_BL": np.ones_like(tokens_BL),
        "neighbours_BCNR": rng.integers(
            2, VOCAB_SIZE, (*shape, NEIGHBOUR_LEN), dtype=np.int32
        ),
        "neighbour_lengths_BCN": np.full(shape, NEIGHBOUR_LEN, np.int32),
    }


@jax.jit
def losses(batch):
    return token_losses(CFG, PARAMS, batch)


def counted(monkeypatch, name: str) -> list:
    """One entry for each run of a function of the module from now on."""
    calls: list = []
    real = getattr(encodings, name)
    monkeypatch.setattr(encodings, name, lambda *given: calls.append(1) or real(*given))
    return calls


def test_a_batch_with_what_is_kept_loses_what_it_loses_without():
    kept = encodings.Encodings(CFG, 10**9)
    for seed in (0, 1, 0):
        batch = make_batch(seed)
        batch["neighbour_lengths_BCN"][0, 1, 0] = 0
        with_neighbours = kept.neighbours_added_to(PARAMS, batch)
        found = losses(with_neighbours)
        np.testing.assert_allclose(found, losses(batch), atol=1e-4)
        with_all = kept.added_to(PARAMS, batch)
        assert {"encoded_BCNTSE", "lower_BSD"} == with_all.keys() - batch.keys()
        np.testing.assert_array_equal(losses(with_all), found)


def test_what_was_read_is_not_read_again(monkeypatch):
    encoded, read = counted(monkeypatch, "_encode"), counted(monkeypatch, "_lower")
    kept = encodings.Encodings(CFG, 10**9)
    kept.added_to(PARAMS, make_batch())
    assert len(encoded) == len(read) == 1  # eight neighbours, and a batch, at once
    kept.added_to(PARAMS, make_batch())
    kept.added_to(PARAMS, without_neighbours(make_batch()))
    assert len(encoded) == len(read) == 1


def test_a_text_that_is_cut_into_documents_elsewhere_is_another(monkeypatch):
    read = counted(monkeypatch, "_lower")
    kept, batch = encodings.Encodings(CFG, 10**9), make_batch()
    segments_BL = batch["segments_BL"].copy()
    segments_BL[1, 5:] = 2
    one = kept.lower(PARAMS, batch["inputs_BL"], batch["segments_BL"])
    two = kept.lower(PARAMS, batch["inputs_BL"], segments_BL)
    assert len(read) == 2
    np.testing.assert_array_equal(two[0], one[0])
    assert np.abs(two[1] - one[1]).max() > 1e-3
    fresh = encodings.Encodings(CFG, 10**9)
    alone = fresh.lower(PARAMS, batch["inputs_BL"], segments_BL)
    np.testing.assert_array_equal(two, alone)


def test_memory_stays_below_its_limit_and_the_oldest_goes():
    kept = encodings.Encodings(CFG, 5 * ENTRY_BYTES)
    rows_PR = make_batch()["neighbours_BCNR"].reshape(8, NEIGHBOUR_LEN)
    encoded = kept.of(PARAMS, rows_PR)
    assert kept.held_bytes == 5 * ENTRY_BYTES
    np.testing.assert_array_equal(kept.of(PARAMS, rows_PR[3:]), encoded[3:])
    # Texts and neighbours share the memory.
    kept.added_to(PARAMS, without_neighbours(make_batch()))
    assert 4 * ENTRY_BYTES < kept.held_bytes <= 5 * ENTRY_BYTES


def test_without_neighbours_none_are_encoded():
    kept = encodings.Encodings(CFG, 10**9)
    batch = without_neighbours(make_batch())
    assert kept.neighbours_added_to(PARAMS, batch) is batch
    assert kept.held_bytes == 0
    assert kept.added_to(PARAMS, batch).keys() - batch.keys() == {"lower_BSD"}
