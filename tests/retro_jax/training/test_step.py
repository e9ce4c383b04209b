"""The step: its loss, its gradient and its update are those of the formulas."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retro_jax.config import OptimizerConfig
from retro_jax.model import parameters
from retro_jax.training.batch import without_neighbours
from retro_jax.training.encodings import Encodings
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.step import (
    logits,
    loss,
    summed_gradients,
    token_losses,
    train_step,
)
from retro_jax.training.train_state import TrainState
from tests import tiny_decoder, tiny_model

CFG = tiny_model.small_config(vocab_size=16)
PARAMS = tiny_model.parameters(CFG)
OPTIMIZER = OptimizerConfig(learning_rate=3e-3)


def _batch(step: int):
    return tiny_model.batch(CFG, num_sequences=4, seed=step)


def test_the_loss_counts_weighted_targets_alone():
    batch = _batch(0)
    losses_BL = jax.jit(functools.partial(token_losses, CFG))(PARAMS, batch)
    summed = jax.jit(loss, static_argnums=2)
    loss_nats, sums = summed(PARAMS, {}, CFG, batch)
    weights_BL = batch["loss_weights_BL"]
    assert 0 < weights_BL.sum() < weights_BL.size
    expected = (np.asarray(losses_BL, np.float64) * weights_BL).sum()
    assert loss_nats == pytest.approx(expected, rel=1e-6)
    assert sums["tokens"] == weights_BL.sum()
    assert sums["bytes"] == (batch["target_bytes_BL"] * weights_BL).sum()
    other = dict(batch)
    other["targets_BL"] = np.where(weights_BL > 0, other["targets_BL"], 3)
    assert summed(PARAMS, {}, CFG, other)[0] == loss_nats


def test_micro_batches_give_the_gradients_of_the_whole():
    """Though their numbers of weighted tokens differ."""
    batch = _batch(0)
    batch["loss_weights_BL"][::2, 4:] = 0.0
    gradients = jax.jit(summed_gradients, static_argnums=(0, 4))
    whole, whole_sums = gradients(CFG, PARAMS, {}, batch, 1)
    parts, parts_sums = gradients(CFG, PARAMS, {}, batch, 2)
    for name, value in whole_sums.items():
        assert parts_sums[name] == pytest.approx(float(value), rel=1e-6), name
    for name, gradient in whole.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(parts[name], gradient, atol=2e-6 * scale)


@functools.partial(jax.jit, static_argnums=0)
def _cca_gradients(cfg, params, batch):
    new = {name: params[name] for name in params if "cross" in name}
    frozen = {name: params[name] for name in params if name not in new}
    return summed_gradients(cfg, new, frozen, batch, 1)


def test_kept_lower_states_give_the_same_gradients_of_cca_for_less():
    """Though no gradient goes through the positions before the end of the first chunk."""
    cfg, params = tiny_decoder.config(), tiny_decoder.whole()
    batch = tiny_model.batch(cfg, num_sequences=2, seed=0)
    kept = Encodings(cfg, 10**9).added_to(params, batch)
    encoded = {name: kept[name] for name in kept if name != "lower_BSD"}
    found, sums = _cca_gradients(cfg, params, encoded)
    of_kept, sums_of_kept = _cca_gradients(cfg, params, kept)
    for name, value in sums.items():
        assert sums_of_kept[name] == pytest.approx(float(value), rel=1e-6), name
    for name, gradient in found.items():
        scale = np.abs(gradient).max()
        assert scale > 0, name
        np.testing.assert_allclose(of_kept[name], gradient, atol=1e-5 * scale)
    flops, flops_of_kept = (
        _cca_gradients.lower(cfg, params, given).cost_analysis()["flops"]
        for given in (encoded, kept)
    )
    assert flops_of_kept < 0.85 * flops  # 0.87 with a gradient through all positions


def test_unrelated_neighbours_are_to_change_nothing():
    """There the loss is how far the prediction is from the one without them."""
    batch = {**_batch(0), "loss_weights_BL": np.ones_like(_batch(0)["loss_weights_BL"])}
    num_chunks = batch["neighbour_lengths_BCN"].shape[1]
    marked_BC = np.zeros((4, num_chunks), bool)
    marked_BC[1, 0] = marked_BC[2, num_chunks - 1] = True
    # A chunk's neighbours are read from its last position on, for a chunk's length.
    first, length = CFG.chunk_len - 1, batch["inputs_BL"].shape[1]
    is_marked_BL = np.zeros((4, length), bool)
    is_marked_BL[1, first : first + CFG.chunk_len] = True
    is_marked_BL[2, length - 1] = True
    at_BLV = jax.jit(functools.partial(logits, CFG))
    on_BLV = np.asarray(at_BLV(PARAMS, batch), np.float64)
    off_BLV = np.asarray(at_BLV(PARAMS, without_neighbours(batch)), np.float64)
    log_on_BLV, log_off_BLV = (
        x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (on_BLV, off_BLV)
    )
    divergence_BL = (np.exp(log_off_BLV) * (log_off_BLV - log_on_BLV)).sum(axis=-1)
    targets_BL = batch["targets_BL"]
    of_targets_BL = -np.take_along_axis(log_on_BLV, targets_BL[..., None], -1)[..., 0]
    expected = np.where(is_marked_BL, divergence_BL, of_targets_BL).sum()
    assert divergence_BL[is_marked_BL].sum() > 0
    told = {**batch, "unrelated_BC": marked_BC}
    found, sums = jax.jit(loss, static_argnums=2)(PARAMS, {}, CFG, told)
    assert found == pytest.approx(expected, rel=1e-5)
    # What is reported stays the text's loss.
    assert sums["loss_nats"] == pytest.approx(of_targets_BL.sum(), rel=1e-5)


def test_predictions_without_retrieval_are_a_target_that_stands_still():
    """Else a backbone that is trained would come to meet what its CCA says."""
    batch = _batch(0)
    batch["unrelated_BC"] = np.ones(batch["neighbour_lengths_BCN"].shape[:2], bool)
    batch = jax.tree.map(jnp.asarray, batch)
    off_BLV = logits(CFG, PARAMS, without_neighbours(batch))
    read_BL = np.arange(batch["inputs_BL"].shape[1]) >= CFG.chunk_len - 1

    def fixed(params):
        on_BLV = jax.nn.log_softmax(logits(CFG, params, batch))
        share_BLV = jax.nn.softmax(off_BLV)
        divergence_BL = (share_BLV * (jnp.log(share_BLV) - on_BLV)).sum(axis=-1)
        text_BL = token_losses(CFG, params, batch)
        losses_BL = jnp.where(read_BL, divergence_BL, text_BL)
        return (losses_BL * batch["loss_weights_BL"]).sum()

    expected = jax.jit(jax.grad(fixed))(PARAMS)
    found, _ = jax.jit(summed_gradients, static_argnums=(0, 4))(
        CFG, PARAMS, {}, batch, 1
    )
    for name, gradient in expected.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(found[name], gradient, atol=1e-5 * scale)


def test_with_kept_lower_states_not_all_can_be_trained():
    with pytest.raises(ValueError, match="no gradient"):
        train_step(CFG, optax.identity(), 1, {"params": {}}, {"lower_BSD": None})


def test_the_loss_of_a_repeated_batch_falls():
    optimizer = make_optimizer(OPTIMIZER, 30)
    step = jax.jit(functools.partial(train_step, CFG, optimizer, 1))
    batch, losses = _batch(0), []
    state = {"params": PARAMS, "optimizer": optimizer.init(PARAMS)}
    for _ in range(30):
        state, sums = step(state, batch)
        losses.append(float(sums["loss_nats"] / sums["tokens"]))
        assert np.isfinite(sums["gradient_norm"]) and sums["gradient_norm"] > 0
    assert losses[-1] < 0.5 * losses[0]
    for name, array in state["params"].items():
        assert (array != PARAMS[name]).any(), name


def test_a_batch_without_weights_updates_nothing_to_nan():
    optimizer = make_optimizer(OPTIMIZER, 30)
    batch = _batch(0)
    batch["loss_weights_BL"][:] = 0.0
    state = {"params": PARAMS, "optimizer": optimizer.init(PARAMS)}
    step = jax.jit(functools.partial(train_step, CFG, optimizer, 1))
    state, sums = step(state, batch)
    assert sums["tokens"] == 0 and sums["loss_nats"] == 0
    assert all(np.isfinite(array).all() for array in state["params"].values())


@pytest.fixture(scope="module")
def update():
    """A compiled step of two micro-batches that is given its state's memory."""
    step = functools.partial(train_step, CFG, make_optimizer(OPTIMIZER, 30), 2)
    return jax.jit(step, donate_argnums=0).lower(_fresh(), _batch(0)).compile()


def _fresh() -> TrainState:
    slots = make_optimizer(OPTIMIZER, 30).init(PARAMS)
    return {"params": jax.tree.map(jnp.copy, PARAMS), "optimizer": slots}


def test_a_step_that_is_not_finite_changes_nothing(update):
    """Neither parameters nor slots nor the schedule's count; and needs no more memory."""
    state, sums = update(_fresh(), _batch(0))
    assert sums["updates"] == 1
    before = jax.tree.map(np.array, state)
    for bad in (np.nan, np.inf):
        batch = _batch(1)
        batch["loss_weights_BL"][-1, -1] = bad  # of the last micro-batch
        state, sums = update(state, batch)
        assert not np.isfinite(sums["gradient_norm"]) and sums["updates"] == 1
        jax.tree.map(np.testing.assert_array_equal, state, before)
    state, sums = update(state, _batch(2))
    assert sums["updates"] == 2
    for name in PARAMS:
        assert (state["params"][name] != before["params"][name]).any(), name
    size_bytes = sum(array.nbytes for array in jax.tree.leaves(before))
    assert update.memory_analysis().alias_size_in_bytes >= size_bytes


def test_an_infinite_gradient_of_a_finite_loss_changes_nothing(update):
    """As one of 1e25, whose square Adam would keep."""
    batch = _batch(0)
    batch["loss_weights_BL"][:] = 0
    batch["loss_weights_BL"][0, :2] = 1e25, -1e25
    new, sums = update(_fresh(), batch)
    assert np.isfinite(sums["loss_nats"]) and not np.isfinite(sums["gradient_norm"])
    jax.tree.map(np.testing.assert_array_equal, new, _fresh())


def _uneven(step: int) -> dict[str, np.ndarray]:
    """A batch whose weights differ, of which most targets of some rows have none."""
    found = _batch(step)
    weights_BL = found["loss_weights_BL"]
    weights_BL *= np.random.default_rng(step).uniform(0.2, 3.0, weights_BL.shape)
    weights_BL[::2, 4:] = 0.0
    return found


def _mean_loss(params, batch):
    """The mean loss in nats over weighted targets, written without the step's code."""
    logits_BLV = parameters.rebuild(CFG, params)(
        batch["inputs_BL"],
        batch["neighbours_BCNR"],
        batch["neighbour_lengths_BCN"],
        batch["segments_BL"],
    )
    scores_BLV = jax.nn.log_softmax(logits_BLV)
    is_target_BLV = jax.nn.one_hot(batch["targets_BL"], CFG.vocab_size)
    losses_BL = -(scores_BLV * is_target_BLV).sum(axis=-1)
    weights_BL = batch["loss_weights_BL"]
    return (losses_BL * weights_BL).sum() / weights_BL.sum()


def _adamw(cfg: OptimizerConfig, steps: int, gradients_of_steps):
    """Parameters after each update, by the formulas of AdamW, in float64.

    Linear warm-up, clipping of the global norm, decay of matrices alone (Loshchilov &
    Hutter 2019, algorithm 2; Borgeaud et al. 2022, section 2.4).
    """
    params = {name: np.asarray(array, np.float64) for name, array in PARAMS.items()}
    first = {name: np.zeros_like(array) for name, array in params.items()}
    second = {name: np.zeros_like(array) for name, array in params.items()}
    warmup = min(cfg.warmup_steps, steps // 10)
    for number, gradients in enumerate(gradients_of_steps):
        norm = math.sqrt(
            sum((g.astype(np.float64) ** 2).sum() for g in gradients.values())
        )
        scale = min(1.0, cfg.clip_norm / norm)
        assert number <= warmup, "the cosine is not written down here"
        span = cfg.learning_rate - cfg.learning_rate_start
        rate = cfg.learning_rate_start + span * number / warmup
        for name, gradient in gradients.items():
            clipped = gradient.astype(np.float64) * scale
            first[name] = cfg.beta1 * first[name] + (1 - cfg.beta1) * clipped
            second[name] = cfg.beta2 * second[name] + (1 - cfg.beta2) * clipped**2
            mean = first[name] / (1 - cfg.beta1 ** (number + 1))
            spread = np.sqrt(second[name] / (1 - cfg.beta2 ** (number + 1)))
            is_matrix = params[name].ndim > 1 and "bias" not in name
            decay = cfg.weight_decay * params[name] if is_matrix else 0.0
            params[name] -= rate * (mean / (spread + cfg.epsilon) + decay)
        yield params, norm


@pytest.mark.parametrize("clip_norm", [0.05, 1e6])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_are_those_of_the_formulas(accumulation, clip_norm):
    """Of the mean loss over weighted targets, whatever micro-batches they fall into."""
    cfg = dataclasses.replace(
        OPTIMIZER, clip_norm=clip_norm, epsilon=0.01, learning_rate_start=1e-3
    )
    optimizer = make_optimizer(cfg, 30)
    step = jax.jit(functools.partial(train_step, CFG, optimizer, accumulation))
    reference = jax.jit(jax.value_and_grad(_mean_loss))
    state = {"params": PARAMS, "optimizer": optimizer.init(PARAMS)}
    gradients, losses = [], []

    def gradients_of_steps():
        for number in range(3):  # at the parameters that our own steps have reached
            found, gradient = reference(state["params"], _uneven(number))
            losses.append(float(found))
            gradients.append(jax.device_get(gradient))
            yield gradients[-1]

    for number, (expected, norm) in enumerate(_adamw(cfg, 30, gradients_of_steps())):
        state, sums = step(state, _uneven(number))
        mean = float(sums["loss_nats"] / sums["tokens"])
        assert mean == pytest.approx(losses[-1], rel=1e-5)
        assert float(sums["gradient_norm"]) == pytest.approx(norm, rel=1e-4)
        for name, array in state["params"].items():
            np.testing.assert_allclose(array, expected[name], atol=2e-6, err_msg=name)
            assert number == 0 or (array != PARAMS[name]).any(), name
