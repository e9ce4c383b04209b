import functools
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from retro_jax import metrics, train
from retro_jax.checkpoints import Checkpoints
from retro_jax.config import OptimizerConfig, TrainConfig
from retro_jax.optimizer import make_optimizer
from tests import tiny_model

CFG = tiny_model.small_config(vocab_size=16)
PARAMS = tiny_model.parameters(CFG)
OPTIMIZER = OptimizerConfig(learning_rate=3e-3)
RUN = {"data": "abc", "seed": 0}
SIX_STEPS = TrainConfig(
    steps=6, batch_size=4, log_every=1, checkpoint_every=3, keep_checkpoints=5
)


def _batch(step: int):
    return tiny_model.batch(CFG, num_sequences=4, seed=step)


def _train(workdir, *, cfg=SIX_STEPS, batch=_batch, run=RUN):
    def batches_from(step):
        return (batch(number) for number in itertools.count(step))

    return train.train(
        CFG, OPTIMIZER, cfg, tiny_model.mesh(1, 1), batches_from, workdir, run
    )


def _rows(workdir):
    """What the metrics say of each step, without times."""
    return [
        {key: value for key, value in row.items() if key not in _TIMES}
        for row in metrics.read_metrics(workdir / "metrics" / "metrics.jsonl")
    ]


_TIMES = ("tokens_per_s", "waiting_for_data_share")


def _steps(workdir):
    folders = (workdir / "checkpoints").iterdir()
    return sorted(path.name for path in folders if path.is_dir())


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of six steps without an interruption: its folder and its end."""
    workdir = tmp_path_factory.mktemp("straight")
    return workdir, jax.device_get(_train(workdir))


def test_the_loss_counts_weighted_targets_alone():
    batch = _batch(0)
    losses_BL = jax.jit(functools.partial(train.token_losses, CFG))(PARAMS, batch)
    loss = jax.jit(functools.partial(train.summed_loss, CFG))
    loss_nats, sums = loss(PARAMS, batch)
    weights_BL = batch["loss_weights_BL"]
    assert 0 < weights_BL.sum() < weights_BL.size
    expected = (np.asarray(losses_BL, np.float64) * weights_BL).sum()
    assert loss_nats == pytest.approx(expected, rel=1e-6)
    assert sums["tokens"] == weights_BL.sum()
    assert sums["bytes"] == (batch["target_bytes_BL"] * weights_BL).sum()
    other = dict(batch)
    other["targets_BL"] = np.where(weights_BL > 0, other["targets_BL"], 3)
    assert loss(PARAMS, other)[0] == loss_nats


def test_without_retrieval_the_neighbours_are_not_looked_at():
    on, off = (
        jax.jit(functools.partial(train.token_losses, CFG, retrieval=retrieval))
        for retrieval in (True, False)
    )
    batch, other = _batch(0), _batch(0)
    other["neighbours_BCNR"] = (other["neighbours_BCNR"] + 1) % CFG.vocab_size
    np.testing.assert_array_equal(off(PARAMS, batch), off(PARAMS, other))
    assert (on(PARAMS, batch) != on(PARAMS, other)).any()
    assert (on(PARAMS, batch) != off(PARAMS, batch)).any()


def test_micro_batches_give_the_gradients_of_the_whole():
    """Though their numbers of weighted tokens differ."""
    batch = _batch(0)
    batch["loss_weights_BL"][::2, 4:] = 0.0
    gradients = jax.jit(train.accumulated_gradients, static_argnums=(0, 3))
    whole, whole_sums = gradients(CFG, PARAMS, batch, 1)
    parts, parts_sums = gradients(CFG, PARAMS, batch, 2)
    for name, value in whole_sums.items():
        assert parts_sums[name] == pytest.approx(float(value), rel=1e-6), name
    for name, gradient in whole.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(parts[name], gradient, atol=2e-6 * scale)


def test_the_loss_of_a_repeated_batch_falls():
    optimizer = make_optimizer(OPTIMIZER, 30)
    step = jax.jit(functools.partial(train.train_step, CFG, optimizer, 1))
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
    step = jax.jit(functools.partial(train.train_step, CFG, optimizer, 1))
    state, sums = step(state, batch)
    assert sums["tokens"] == 0 and sums["loss_nats"] == 0
    assert all(np.isfinite(array).all() for array in state["params"].values())


def test_a_run_says_what_it_does(straight, capsys):
    workdir, state = straight
    rows = _rows(workdir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert 0 < row["loss_nats_per_token"] < 10 and row["gradient_norm"] > 0
        assert row["bits_per_byte"] > 0 and row["learning_rate"] > 0
    assert _steps(workdir) == ["3", "6"]
    saved = workdir / "checkpoints" / "6" / "run" / "metadata"
    assert json.loads(saved.read_text()) == RUN | {"step": 6}
    assert not np.array_equal(*(state["params"]["norm/scale_D"][:2]))


def test_a_killed_run_goes_on_bit_for_bit(straight, tmp_path, capsys):
    """It is killed while it saves step 6: the unfinished folder is no checkpoint."""
    workdir, expected = straight
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    folder = again / "checkpoints"
    (folder / "6").rename(folder / "6.orbax-checkpoint-tmp")
    asked = []
    got = _train(again, batch=lambda step: asked.append(step) or _batch(step))
    assert asked == [3, 4, 5]
    assert "going on from step 3" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), expected)
    assert _rows(again) == _rows(workdir)
    assert _steps(again) == ["3", "6"]


def test_a_finished_run_is_left_as_it_is(straight, tmp_path):
    workdir, expected = straight
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    got = _train(again, batch=lambda step: pytest.fail("asked for data"))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), expected)
    assert _rows(again) == _rows(workdir)


def test_a_checkpoint_of_another_run_is_refused_and_kept(straight):
    workdir, _ = straight
    with pytest.raises(ValueError, match="data = 'abc', this run has 'other'"):
        _train(workdir, run=RUN | {"data": "other"})
    assert _steps(workdir) == ["3", "6"] and len(_rows(workdir)) == 6


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path):
    def batch(step):
        values = _batch(step)
        if step == 5:  # the sixth step, which would be saved
            values["loss_weights_BL"][0, 0] = np.nan
        return values

    with pytest.raises(FloatingPointError, match="loss of step 6 is nan"):
        _train(tmp_path, batch=batch)
    assert _steps(tmp_path) == ["3"]
    keeper = Checkpoints(tmp_path / "checkpoints", keep=1)
    assert keeper.latest_step() == 3
    keeper.close()
    assert [row["step"] for row in _rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_an_error_in_the_data_leaves_the_checkpoint_whole(tmp_path):
    """Even if it comes while the checkpoint is still being written."""

    def batch(step):
        if step == 3:
            raise OSError("the disk is gone")
        return _batch(step)

    with pytest.raises(OSError, match="the disk is gone"):
        _train(tmp_path, batch=batch)
    assert _steps(tmp_path) == ["3"]
    assert [row["step"] for row in _rows(tmp_path)] == [1, 2, 3]
