"""What of a batch goes to the devices."""

import dataclasses
import functools

import jax
import numpy as np

from retro_jax.training.batch import (
    Rows,
    to_devices,
    with_oracle_neighbours,
    with_other_numbers,
    with_worse_neighbours,
    without_neighbours,
)
from retro_jax.training.number_tokens import NumberTokens
from retro_jax.training.step import token_losses
from tests import tiny_model

CFG = tiny_model.small_config(vocab_size=16)
PARAMS = tiny_model.parameters(CFG)


def _all(batch) -> Rows:
    return Rows.all_of(len(batch["neighbour_lengths_BCN"]))


def _batch(step: int):
    return tiny_model.batch(CFG, num_sequences=4, seed=step)


def test_a_batch_without_neighbours_is_read_by_the_decoder_alone():
    losses = jax.jit(functools.partial(token_losses, CFG))
    batch, other = _batch(0), _batch(0)
    other["neighbours_BCNR"] = (other["neighbours_BCNR"] + 1) % CFG.vocab_size
    off, also_off = (losses(PARAMS, without_neighbours(b)) for b in (batch, other))
    np.testing.assert_array_equal(off, also_off)
    assert (losses(PARAMS, batch) != losses(PARAMS, other)).any()
    assert (losses(PARAMS, batch) != off).any()


def test_neighbours_go_to_the_devices_only_if_the_model_can_read_any():
    mesh, batch = tiny_model.mesh(1, 1), _batch(0)
    lengths = np.zeros_like(batch["neighbour_lengths_BCN"])
    absent = {**batch, "neighbour_lengths_BCN": lengths}
    one = {**absent, "neighbour_lengths_BCN": lengths.copy()}
    one["neighbour_lengths_BCN"][2, 0, 0] = 1
    baseline = dataclasses.replace(CFG, cca_layers=())
    few = without_neighbours(batch).keys()
    assert len(few) == len(batch) - 2
    assert to_devices(CFG, batch, mesh).keys() == batch.keys()
    assert to_devices(CFG, one, mesh).keys() == batch.keys()
    assert to_devices(CFG, absent, mesh).keys() == few
    assert to_devices(baseline, batch, mesh).keys() == few


def test_a_share_of_chunks_reads_nothing_and_another_what_was_found_for_others():
    shape = (64, 8, 2)
    number = np.arange(64 * 8).reshape(64, 8, 1, 1)
    batch = {
        "neighbours_BCNR": np.broadcast_to(number, (*shape, 3)),
        "neighbour_lengths_BCN": np.full(shape, 3),
    }
    made = with_worse_neighbours(
        batch, 0.25, 0.5, np.random.default_rng(0), _all(batch)
    )
    absent_BC = (made["neighbour_lengths_BCN"] == 0).all(axis=-1)
    other_BC = made["neighbours_BCNR"][:, :, 0, 0] != number[..., 0, 0]
    assert 0.2 < absent_BC.mean() < 0.3
    assert 0.44 < other_BC.mean() < 0.56
    assert not (absent_BC & other_BC).any()
    # They come from another row of the batch.
    rows_BC = made["neighbours_BCNR"][:, :, 0, 0] // 8
    assert (rows_BC != np.arange(64)[:, None])[other_BC].all()


def test_what_was_found_for_others_is_marked_where_that_is_asked_for():
    batch, rng = _batch(0), functools.partial(np.random.default_rng, 0)
    plain = with_worse_neighbours(batch, 0.2, 0.5, rng(), _all(batch))
    made = with_worse_neighbours(batch, 0.2, 0.5, rng(), _all(batch), are_told=True)
    marked_BC = made["unrelated_BC"]
    assert made.keys() - plain.keys() == {"unrelated_BC"}
    changed_BCNR = made["neighbours_BCNR"] != batch["neighbours_BCNR"]
    np.testing.assert_array_equal(marked_BC, changed_BCNR.any(axis=(2, 3)))
    assert marked_BC.any() and not marked_BC.all()
    assert "unrelated_BC" not in without_neighbours(made)


def test_without_shares_a_batch_stays_as_it_is():
    batch = _batch(0)
    assert (
        with_worse_neighbours(batch, 0, 0, np.random.default_rng(0), _all(batch))
        is batch
    )
    nothing = with_worse_neighbours(
        batch, 1.0, 0.0, np.random.default_rng(0), _all(batch)
    )
    assert nothing.keys() == batch.keys() - {
        *("neighbours_BCNR", "neighbour_lengths_BCN"),
    }


def _numbered():
    """Two rows of four chunks of 8 tokens; row 1 has two documents and padding."""
    inputs_BL = np.arange(64, dtype=np.int32).reshape(2, 32)
    segments_BL = np.ones_like(inputs_BL)
    segments_BL[1, 12:28], segments_BL[1, 28:] = 2, 0
    neighbours_BCNR = np.full((2, 4, 2, 16), 100, np.int32)
    neighbours_BCNR[:, :, 1] = 200
    return {
        "inputs_BL": inputs_BL,
        "segments_BL": segments_BL,
        "neighbours_BCNR": neighbours_BCNR,
        "neighbour_lengths_BCN": np.full((2, 4, 2), [9, 5], np.int32),
    }


def test_an_oracle_is_the_text_around_a_chunks_end():
    cfg, batch = tiny_model.small_config(chunk_len=8, neighbour_len=16), _numbered()
    before = {name: array.copy() for name, array in batch.items()}
    made = with_oracle_neighbours(
        cfg, batch, 1.0, np.random.default_rng(0), _all(batch)
    )
    for name, array in before.items():
        np.testing.assert_array_equal(batch[name], array)
    starts = set()
    for row, chunk in np.ndindex(2, 3):
        length = made["neighbour_lengths_BCN"][row, chunk, 0]
        passage = made["neighbours_BCNR"][row, chunk, 0, :length]
        ids = passage - 32 * row
        last = 8 * chunk + 7
        segments = batch["segments_BL"][row]
        # One document's tokens in their order, with the chunk's last token among them.
        np.testing.assert_array_equal(np.diff(ids), 1)
        assert last in ids and set(segments[ids]) == {segments[last]}
        assert max(8 * chunk - 8, 0) < ids[0] + (ids[0] == 0) and length <= 16
        starts.add(8 * chunk - ids[0])
        # What was nearest comes second.
        np.testing.assert_array_equal(made["neighbours_BCNR"][row, chunk, 1], 100)
        assert made["neighbour_lengths_BCN"][row, chunk, 1] == 9
    assert len(starts) > 3
    # The last chunk of row 1 ends in padding: there is nothing to read on.
    assert made["neighbour_lengths_BCN"][1, 3, 0] == 0


def test_oracles_come_in_a_share_of_the_chunks():
    cfg, batch = tiny_model.small_config(chunk_len=8, neighbour_len=16), _numbered()
    many = {name: np.repeat(array, 64, axis=0) for name, array in batch.items()}
    made = with_oracle_neighbours(cfg, many, 0.25, np.random.default_rng(0), _all(many))
    changed_BC = (made["neighbours_BCNR"] != many["neighbours_BCNR"]).any(axis=(2, 3))
    assert 0.2 < changed_BC.mean() < 0.3
    assert (
        with_oracle_neighbours(cfg, batch, 0, np.random.default_rng(0), _all(batch))
        is batch
    )


def test_a_share_of_rows_has_other_numbers_in_text_and_neighbours_alike():
    numbers = NumberTokens([b"", b"of", b" ", *(b"%d" % digit for digit in range(10))])
    rng = np.random.default_rng(5)
    batch = {
        "inputs_BL": rng.integers(0, 13, (40, 16), np.int32),
        "neighbours_BCNR": rng.integers(0, 13, (40, 2, 3, 8), np.int32),
        "neighbour_lengths_BCN": np.full((40, 2, 3), 8),
    }
    batch["targets_BL"] = np.roll(batch["inputs_BL"], -1, axis=1)
    before = {name: array.copy() for name, array in batch.items()}
    made = with_other_numbers(
        batch, 0.5, numbers, np.random.default_rng(0), _all(batch)
    )
    changed = 0
    for row in range(40):
        # What each token has become, wherever it stands in the row: one token, or itself.
        pairs = {
            (old, new)
            for name in ("inputs_BL", "targets_BL", "neighbours_BCNR")
            for old, new in zip(
                before[name][row].reshape(-1), made[name][row].reshape(-1), strict=True
            )
        }
        assert len({old for old, _ in pairs}) == len(pairs)
        others = {old for old, new in pairs if old != new}
        assert others in (set(), {old for old, _ in pairs if old > 2})
        changed += bool(others)
    assert 10 < changed < 30
    for name, array in before.items():  # what comes again must be as it was
        np.testing.assert_array_equal(batch[name], array)
    assert with_other_numbers(batch, 0, numbers, rng, _all(batch)) is batch


def test_a_row_is_changed_alike_however_many_processes_share_the_batch():
    numbers = NumberTokens([b"", b"of", *(b"%d" % digit for digit in range(10))])
    rng = np.random.default_rng(2)
    batch = {
        "inputs_BL": rng.integers(0, 12, (8, 4 * CFG.chunk_len), np.int32),
        "segments_BL": np.ones((8, 4 * CFG.chunk_len), np.int32),
        "neighbours_BCNR": rng.integers(0, 12, (8, 4, 2, CFG.neighbour_len), np.int32),
        "neighbour_lengths_BCN": np.full((8, 4, 2), CFG.neighbour_len),
    }
    batch["targets_BL"] = np.roll(batch["inputs_BL"], -1, axis=1)

    def changed(mine_B):
        rows, drawn = Rows(8, mine_B), functools.partial(np.random.default_rng, 7)
        mine = {name: array[mine_B] for name, array in batch.items()}
        mine = with_oracle_neighbours(CFG, mine, 0.5, drawn(), rows)
        mine = with_other_numbers(mine, 0.5, numbers, drawn(), rows)
        return with_worse_neighbours(mine, 0.3, 0.0, drawn(), rows)

    whole = changed(np.arange(8))
    assert any((whole[name] != array).any() for name, array in batch.items())
    for mine_B in (np.arange(4), np.arange(4, 8), np.array([2, 3, 6, 7])):
        for name, array in changed(mine_B).items():
            np.testing.assert_array_equal(array, whole[name][mine_B], err_msg=name)
