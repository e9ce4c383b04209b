import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax import evaluation
from retro_jax.evaluation import ChunkLosses
from retro_jax.training.encodings import Encodings
from retro_jax.training.step import token_losses
from tests import tiny_decoder, tiny_model

CFG = tiny_model.small_config(vocab_size=16)
PARAMS = tiny_model.parameters(CFG)
UNIFORM = PARAMS | {"embedding_VD": jnp.zeros_like(PARAMS["embedding_VD"])}


def _batches():
    """Two batches of two sequences of three chunks; documents 0 to 3; -1 is padding."""
    documents = [[[0, 0, 1], [1, 1, 2]], [[2, 2, 3], [-1, -1, -1]]]
    for seed, documents_BC in enumerate(documents):
        batch = tiny_model.batch(CFG, seed=seed)
        batch["documents_BC"] = np.array(documents_BC, np.int64)
        batch["loss_weights_BL"][:] = 1.0
        batch["loss_weights_BL"][0, :2] = 0.0
        padding = np.repeat(batch["documents_BC"] < 0, CFG.chunk_len, axis=1)
        batch["loss_weights_BL"][padding] = 0.0
        batch["segments_BL"][padding] = 0
        yield batch


def _measure(params, *, retrieval, batches=None, mesh=(1, 1), **options):
    return evaluation.chunk_losses(
        CFG,
        params,
        tiny_model.mesh(*mesh),
        _batches() if batches is None else batches,
        retrieval=retrieval,
        **options,
    )


@pytest.fixture(scope="module")
def on():
    return _measure(PARAMS, retrieval=True)


@pytest.fixture(scope="module")
def off():
    return _measure(PARAMS, retrieval=False)


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_each_token():
    done = []
    losses = _measure(UNIFORM, retrieval=True, advance=done.append)
    assert done == [2, 1]  # the last row is of no document
    weights = np.concatenate([b["loss_weights_BL"].ravel() for b in _batches()])
    sizes = np.concatenate([b["target_bytes_BL"].ravel() for b in _batches()])
    bytes_per_token = (weights * sizes).sum() / weights.sum()
    assert losses.tokens_X.sum() == weights.sum()
    expected = math.log2(CFG.vocab_size) / bytes_per_token
    assert losses.bits_per_byte() == pytest.approx(expected, rel=1e-6)


def test_chunks_stand_in_the_order_of_the_batches(on):
    np.testing.assert_array_equal(
        on.documents_X, [0, 0, 1, 1, 1, 2, 2, 2, 3, -1, -1, -1]
    )
    np.testing.assert_array_equal(on.tokens_X, [2, 4, 4, 4, 4, 4, 2, 4, 4, 0, 0, 0])
    batch = next(iter(_batches()))
    del batch["documents_BC"]
    losses = jax.jit(functools.partial(token_losses, CFG))
    losses_BL = np.asarray(losses(PARAMS, batch), np.float64)
    expected = (losses_BL * batch["loss_weights_BL"]).reshape(-1, CFG.chunk_len)
    np.testing.assert_allclose(on.loss_nats_X[:6], expected.sum(axis=1), rtol=1e-5)


def test_padding_counts_nothing_whatever_stands_there(on):
    batches = list(_batches())
    batches[1]["inputs_BL"][1] = 5
    batches[1]["targets_BL"][1] = 7
    batches[1]["neighbours_BCNR"][1] = 3
    again = _measure(PARAMS, retrieval=True, batches=batches)
    np.testing.assert_array_equal(again.loss_nats_X, on.loss_nats_X)
    for values_X in (on.loss_nats_X, on.bytes_X, on.tokens_X):
        np.testing.assert_array_equal(values_X[9:], 0.0)


def test_a_loss_that_is_not_finite_has_no_weight_where_there_is_none():
    batches = list(_batches())
    batch = batches[1]
    for name in ("inputs_BL", "targets_BL"):
        batch[name][0] %= 15
        batch[name][1] = 15
    batch["neighbours_BCNR"] %= 15
    params = PARAMS | {"embedding_VD": PARAMS["embedding_VD"].at[15].set(1e30)}
    losses = _measure(params, retrieval=True, batches=[batch])
    np.testing.assert_array_equal(losses.loss_nats_X[3:], 0.0)


def test_retrieval_off_does_not_look_at_neighbours(on, off):
    batches = list(_batches())
    for batch in batches:
        batch["neighbours_BCNR"] = (batch["neighbours_BCNR"] + 1) % CFG.vocab_size
    again = _measure(PARAMS, retrieval=False, batches=batches)
    np.testing.assert_array_equal(again.loss_nats_X, off.loss_nats_X)
    assert on.bits_per_byte() != off.bits_per_byte()


def test_eight_devices_measure_the_same(on):
    halves = list(_batches())
    batch = {
        name: np.concatenate([half[name] for half in halves] * 2) for name in halves[0]
    }
    losses = _measure(PARAMS, retrieval=True, batches=[batch], mesh=(4, 1))
    np.testing.assert_allclose(losses.loss_nats_X[:12], on.loss_nats_X, rtol=1e-5)
    assert losses.bits_per_byte() == pytest.approx(on.bits_per_byte(), rel=1e-6)


def test_losses_are_grouped_by_document_whatever_their_order():
    losses = ChunkLosses(
        np.array([1.0, 2.0, 4.0, 8.0]),
        np.array([1.0, 1.0, 3.0, 5.0]),
        np.ones(4),
        np.array([7, 2, 7, 2]),
    )
    nats, num_bytes = losses.by_document()
    np.testing.assert_array_equal(nats, [10.0, 5.0])  # documents 2 and 7
    np.testing.assert_array_equal(num_bytes, [6.0, 4.0])
    assert losses.bits_per_byte() == pytest.approx(15 / (10 * math.log(2)))
    keep = np.array([True, False, True, False])
    assert losses.bits_per_byte(keep) == pytest.approx(5 / (4 * math.log(2)))
    assert math.isnan(losses.bits_per_byte(np.zeros(4, bool)))


def _synthetic(seed: int, shift_nats: float = 0.0, documents: int = 60) -> ChunkLosses:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(100, 300, documents * 3).astype(np.float64)
    nats = sizes * rng.normal(0.7, 0.2, documents * 3) + shift_nats * sizes
    return ChunkLosses(
        nats, sizes, np.ones(len(sizes)), np.repeat(np.arange(documents), 3)
    )


def test_the_interval_holds_the_value_and_narrows_with_documents():
    few, many = _synthetic(0), _synthetic(0, documents=2000)
    widths = []
    for losses in (few, many):
        low, high = evaluation.interval(losses)
        assert low < losses.bits_per_byte() < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 4
    assert evaluation.interval(few) == evaluation.interval(few)
    assert evaluation.interval(few) != evaluation.interval(few, seed=1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth = 0.7 / math.log(2)
    intervals = [evaluation.interval(_synthetic(seed)) for seed in range(60)]
    covered = sum(low <= truth <= high for low, high in intervals)
    assert 51 <= covered <= 60


def test_the_interval_ends_at_the_2_5th_and_97_5th_percentile():
    """Of the mean of two documents, drawn with replacement: a quarter of the draws has the
    first twice, a half both, a quarter the second twice. And of many documents, the
    normal law's 1.96 standard errors."""
    two = ChunkLosses(
        np.array([0.0, math.log(2)]), np.ones(2), np.ones(2), np.arange(2)
    )
    assert evaluation.interval(two) == (0.0, pytest.approx(1.0))
    rng = np.random.default_rng(0)
    nats = rng.normal(1.0, 0.3, 400) * math.log(2)
    many = ChunkLosses(nats, np.ones(400), np.ones(400), np.arange(400))
    error = (nats / math.log(2)).std() / math.sqrt(400)
    low, high = evaluation.interval(many)
    # 2,000 draws place a percentile to about 3 %; a 90 % interval would be 1.645 wide.
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06)


def test_the_difference_is_taken_draw_by_draw():
    losses, shifted = _synthetic(0), _synthetic(0, shift_nats=0.1)
    assert evaluation.interval(losses, losses) == (0.0, 0.0)
    low, high = evaluation.interval(shifted, losses)
    assert low == pytest.approx(0.1 / math.log(2), rel=1e-6)
    assert high == pytest.approx(low, rel=1e-6)
    with pytest.raises(ValueError, match="not measured on the same documents"):
        evaluation.interval(losses, _synthetic(1))


def test_padding_does_not_move_the_interval():
    losses = _synthetic(0)
    padded = ChunkLosses(
        np.append(losses.loss_nats_X, 0.0),
        np.append(losses.bytes_X, 0.0),
        np.append(losses.tokens_X, 0.0),
        np.append(losses.documents_X, -1),
    )
    assert evaluation.interval(padded) == evaluation.interval(losses)
    assert padded.bits_per_byte() == losses.bits_per_byte()


def test_one_document_has_no_interval():
    low, high = evaluation.interval(_synthetic(0, documents=1))
    assert math.isnan(low) and math.isnan(high)


def test_passages_stand_before_the_text_that_read_them_and_are_not_scored():
    cfg = tiny_model.small_config(chunk_len=4)
    length, neighbour_len = 12, 8
    inputs_BL = np.arange(1, length + 1, dtype=np.int32)[None]
    lengths = np.array([[[8, 5], [8, 0], [8, 8]]])
    batch = {
        "inputs_BL": inputs_BL,
        "targets_BL": inputs_BL + 1,
        "loss_weights_BL": np.ones((1, length), np.float32),
        "target_bytes_BL": np.ones((1, length), np.int32),
        "segments_BL": np.ones((1, length), np.int32),
        "documents_BC": np.zeros((1, 3), np.int64),
        "neighbours_BCNR": np.full((1, 3, 2, neighbour_len), 20, np.int32),
        "neighbour_lengths_BCN": lengths,
    }
    second, third = evaluation.with_neighbours_in_prompt(cfg, [batch])
    passages = 2 * neighbour_len
    np.testing.assert_array_equal(second["inputs_BL"][:, passages:], inputs_BL)
    # Of each chunk its own targets; passages of the chunk before, as far as they are text.
    for made, chunk in ((second, 1), (third, 2)):
        scored = np.flatnonzero(made["loss_weights_BL"][0])
        start = passages + chunk * cfg.chunk_len
        assert scored.tolist() == list(range(start, start + cfg.chunk_len))
        seen = made["segments_BL"][0]
        assert seen[:passages].sum() == lengths[0, chunk - 1].sum()
        assert seen[passages:].sum() == (chunk + 1) * cfg.chunk_len
        assert (made["documents_BC"][0, : passages // cfg.chunk_len] == -1).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_retrieval_off_with_kept_states_is_the_plain_decoder_bit_for_bit(dtype):
    cfg = tiny_decoder.config(dtype=dtype)
    batch = tiny_model.batch(cfg, num_sequences=2, seed=0)
    num_chunks = batch["inputs_BL"].shape[1] // cfg.chunk_len
    batch["documents_BC"] = np.zeros((2, num_chunks), np.int64)
    encodings = Encodings(cfg, 10**9)
    losses = [
        evaluation.chunk_losses(
            of, params, tiny_model.mesh(1, 1), [batch], retrieval=False, **options
        )
        for of, params, options in (
            (cfg, tiny_decoder.whole(), {"encodings": encodings}),
            (
                tiny_decoder.config(dtype=dtype, cca_layers=()),
                tiny_decoder.backbone(),
                {},
            ),
        )
    ]
    np.testing.assert_array_equal(losses[0].loss_nats_X, losses[1].loss_nats_X)
    assert bool(encodings.held_bytes) == (dtype == "float32")
