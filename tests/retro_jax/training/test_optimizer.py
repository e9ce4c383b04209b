import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retro_jax.config import OptimizerConfig
from retro_jax.training.optimizer import decays, learning_rate, make_optimizer


def test_the_schedule_warms_up_and_ends_at_its_share():
    cfg = OptimizerConfig(learning_rate=1e-3, warmup_steps=10, final_share=0.1)
    rate = learning_rate(cfg, 1000)
    assert rate(0) == pytest.approx(1e-7)
    assert rate(5) == pytest.approx((1e-3 + 1e-7) / 2)
    assert rate(10) == pytest.approx(1e-3)
    assert rate(505) == pytest.approx(1e-3 * 0.55, rel=1e-3)
    assert rate(1000) == pytest.approx(1e-4)
    assert rate(2000) == pytest.approx(1e-4)


def test_the_warm_up_of_a_short_run_is_a_tenth_of_it():
    rate = learning_rate(OptimizerConfig(), 100)
    assert rate(10) == pytest.approx(2e-4)
    assert rate(9) < rate(10) > rate(11)
    assert rate(100) == pytest.approx(2e-5)
    assert learning_rate(OptimizerConfig(), 1)(1) == pytest.approx(2e-4)


def test_matrices_decay_and_gains_and_biases_do_not():
    names = (
        "embedding_VD",
        "decoder/1/ffw/w_in_DF",
        "decoder/1/cross/w_o_HKD",
        "decoder/1/norm_ffw/scale_D",
        "decoder/1/attention/bias_content_HK",
    )
    params = dict.fromkeys(names, jnp.zeros(1))
    assert list(decays(params).values()) == [True] * 3 + [False] * 2


PARAMS = {"w_in_DF": jnp.full((2, 3), 2.0), "scale_D": jnp.full(2, 2.0)}


def _update(cfg: OptimizerConfig, gradients):
    optimizer = make_optimizer(cfg, 100)
    slots = optimizer.init(PARAMS)
    return jax.jit(optimizer.update)(gradients, slots, PARAMS)


def test_without_gradient_only_matrices_shrink():
    cfg = OptimizerConfig(learning_rate_start=0.5, weight_decay=0.1)
    zero = {name: jnp.zeros_like(value) for name, value in PARAMS.items()}
    updates, _ = _update(cfg, zero)
    np.testing.assert_allclose(updates["w_in_DF"], -0.5 * 0.1 * 2.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["scale_D"], 0.0)


@pytest.mark.parametrize("clip_norm", [1.0, 0.0])
def test_the_global_norm_is_clipped_unless_it_is_zero(clip_norm):
    gradients = {name: jnp.full_like(value, 10.0) for name, value in PARAMS.items()}
    _, slots = _update(OptimizerConfig(clip_norm=clip_norm), gradients)
    moments = optax.tree_utils.tree_get(slots, "mu")
    seen = optax.tree.norm(moments) / (1 - 0.9)
    assert seen == pytest.approx(clip_norm or float(np.sqrt(8 * 100)), rel=1e-5)
    assert set(moments) == set(PARAMS)


def test_gates_learn_faster_by_their_rate_and_nothing_else_does():
    params = {
        "decoder/1/cross/gate_H": jnp.ones(2),
        "decoder/1/cross/w_q_DHK": jnp.ones((2, 1, 2)),
    }
    steps = {}
    for rate in (1.0, 30.0):
        cfg = OptimizerConfig(gate_rate=rate, weight_decay=0.0)
        optimizer = make_optimizer(cfg, 100)
        steps[rate], _ = optimizer.update(params, optimizer.init(params), params)
    gate, matrix = params
    np.testing.assert_allclose(steps[30.0][gate], 30 * steps[1.0][gate], rtol=1e-6)
    np.testing.assert_array_equal(steps[30.0][matrix], steps[1.0][matrix])
