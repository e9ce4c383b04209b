"""A step that is measured is the step of training."""

import functools

import jax
import pytest

from retro_jax.config import OptimizerConfig
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.step import train_step
from retro_jax.training.train_state import initial_state
from tests import tiny_model
from tools.benchmark import sizes
from tools.benchmark.step import Step


def test_a_step_is_that_of_training():
    """Three steps (one of them the first, which is not measured) give training's loss."""
    cfg = sizes.without_retrieval(tiny_model.small_config())
    load = sizes.Load(sequence_len=8, batch_size=2)
    batch = sizes.synthetic_batch(cfg, load)
    mesh = tiny_model.mesh(2, 1)
    step = Step(cfg, OptimizerConfig(), batch, mesh)
    step.start()
    assert step.run(2) > 0
    optimizer = make_optimizer(OptimizerConfig(), 10_000)
    update = jax.jit(functools.partial(train_step, cfg, optimizer, 1))
    train_state = jax.jit(functools.partial(initial_state, cfg, optimizer, 0))()
    for _ in range(3):
        train_state, sums = update(train_state, batch)
    wanted = float(sums["loss_nats"] / sums["tokens"])
    assert step.last_loss_nats == pytest.approx(wanted, rel=1e-5)
    step.stop()
    with pytest.raises(ValueError, match="call start first"):
        step.run(1)
