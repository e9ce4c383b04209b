"""A run of training: stopped and gone on with, damaged, out of data."""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from retro_jax.config import OptimizerConfig, TrainConfig
from retro_jax.model import parameters
from retro_jax.runs import metrics
from retro_jax.runs.checkpoints import Checkpoints
from retro_jax.runs.preemption import Preempted
from retro_jax.training.loop import train
from retro_jax.training.step import updates_made
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


def _train(workdir, *, cfg=SIX_STEPS, batch=_batch, run=RUN, optimizer=OPTIMIZER):
    def batches_from(step):
        return (batch(number) for number in itertools.count(step))

    return train(CFG, optimizer, cfg, tiny_model.mesh(1, 1), batches_from, workdir, run)


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


def test_batches_with_and_without_neighbours_train_in_turn(tmp_path):
    """The encoder learns nothing from batches whose neighbours are all absent."""

    without_decay = dataclasses.replace(OPTIMIZER, weight_decay=0.0)

    def trained(every: int):
        def batch(step):
            found = _batch(step)
            found["neighbour_lengths_BCN"][:] *= (step + 1) % every == 0
            return found

        folder = tmp_path / str(every)
        return _train(folder, batch=batch, optimizer=without_decay)["params"]

    start = jax.jit(parameters.initial_parameters, static_argnums=(0, 1))
    first = start(CFG, SIX_STEPS.seed)
    in_turn, never = trained(2), trained(100)
    for name, value in never.items():
        read = name.startswith("encoder/") or "cross" in name
        assert np.array_equal(value, first[name]) == read, name
        assert not np.array_equal(in_turn[name], first[name]), name


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


def _with_nan(*steps: int):
    """Batches of which some give a loss that is no number; steps from 1."""

    def batch(number):
        values = _batch(number)
        if number + 1 in steps:
            values["loss_weights_BL"][0, 0] = np.nan
        return values

    return batch


def _patient(most: int, **changes) -> TrainConfig:
    return dataclasses.replace(SIX_STEPS, max_skipped_steps=most, **changes)


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path):
    with pytest.raises(FloatingPointError, match="loss of step 6 is nan"):
        _train(tmp_path, cfg=_patient(0), batch=_with_nan(6))
    assert _steps(tmp_path) == ["3"]
    keeper = Checkpoints(tmp_path / "checkpoints", keep=1)
    assert keeper.latest_step() == 3
    keeper.close()
    assert [row["step"] for row in _rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_skipped_steps_are_counted_and_are_as_if_they_had_not_been(tmp_path, capsys):
    """Batches 3 and 5 are left out; what is read of them spoils no mean."""
    skipping, without = tmp_path / "skipping", tmp_path / "without"
    cfg = _patient(1, log_every=3)
    state = _train(skipping, cfg=cfg, batch=_with_nan(3, 5))
    rows = _rows(skipping)
    assert [row["skipped_steps"] for row in rows] == [1, 2]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert int(updates_made(state)) == 4
    said = capsys.readouterr().out
    assert "step 3 is nan, its gradient norm nan: not applied (1 of 1 in a row)" in said

    def others(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # ends the run after its fourth step
        return _batch((0, 1, 3, 5)[step])

    with pytest.raises(Preempted):
        _train(without, cfg=cfg, batch=others)
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with contextlib.closing(Checkpoints(without / "checkpoints", keep=1)) as keeper:
        step, expected = keeper.restore(wanted, RUN)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 4 is nan.*the 3\. such step"):
        _train(tmp_path, cfg=_patient(2), batch=_with_nan(2, 3, 4))
    assert _steps(tmp_path) == ["3"]  # finite: the parameters after step 1
    got = _train(tmp_path, cfg=_patient(2))  # the data has been mended
    assert int(updates_made(got)) == 4
    assert [row["skipped_steps"] for row in _rows(tmp_path)] == [0, 1, 2, 2, 2, 2]


def test_sigterm_saves_the_step_under_way_and_the_run_goes_on_from_it(
    straight, tmp_path, capsys
):
    workdir, expected = straight

    def batch(step):
        if step == 3:  # while the fourth step is made ready
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return _batch(step)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="step 4 is saved"):
        _train(tmp_path, batch=batch)
    assert signal.getsignal(signal.SIGTERM) == before
    assert _steps(tmp_path) == ["3", "4"]
    asked = []
    got = _train(tmp_path, batch=lambda step: asked.append(step) or _batch(step))
    assert asked == [4, 5]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), expected)
    assert _rows(tmp_path) == _rows(workdir)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    straight, tmp_path, capsys
):
    workdir, expected = straight
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    files = (again / "checkpoints" / "6").rglob("*")
    data = max(files, key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(data.read_bytes())
    # Half of the file: a single bit may be one that nothing needs (tests/retro_jax/runs/test_damaged_checkpoints.py).
    for place in range(len(content) // 4, 3 * len(content) // 4):
        content[place] ^= 1
    data.write_bytes(content)
    got = _train(again)
    said = capsys.readouterr().out
    assert "the checkpoint of step 6: array " in said
    assert "going on from step 3" in said
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), expected)
    assert _steps(again) == ["3", "6", "damaged-6"]


def test_a_checkpoint_of_another_run_is_refused_before_anything_is_compiled(
    straight, monkeypatch
):
    monkeypatch.setattr(jax, "jit", lambda *_, **__: pytest.fail("compiles"))
    with pytest.raises(ValueError, match="data = 'abc', this run has 'other'"):
        _train(straight[0], run=RUN | {"data": "other"})


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
