"""What a run says of its steps: means over the steps since the last line."""

import contextlib
import math
import time

import jax.numpy as jnp
import pytest

from retro_jax.config import OptimizerConfig, TrainConfig
from retro_jax.runs.metrics import read_metrics
from retro_jax.training.training_log import TrainingLog

OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
CFG = TrainConfig(steps=40, batch_size=1, log_every=2, max_skipped_steps=1)


def _sums(loss_nats: float, tokens: int, updates: int) -> dict:
    values = {
        "loss_nats": loss_nats,
        "tokens": tokens,
        "bytes": 4 * tokens,
        "gradient_norm": loss_nats / 2,
        "updates": updates,
    }
    return {name: jnp.float32(value) for name, value in values.items()}


def _log(folder, clock=time.perf_counter):
    return contextlib.closing(TrainingLog(folder, OPTIMIZER, CFG, 0, clock=clock))


def test_a_line_is_the_mean_over_tokens_of_the_steps_since_the_last(tmp_path, capsys):
    with _log(tmp_path) as log:
        for step, (loss_nats, tokens) in enumerate([(6.0, 2), (10.0, 6), (1.0, 1)], 1):
            assert log.timed(lambda: "batch") == "batch"
            log.after_step(step, _sums(loss_nats, tokens, step))
    [row] = read_metrics(tmp_path / "metrics.jsonl")  # of step 3 nothing is due yet
    assert row["step"] == 2
    assert row["loss_nats_per_token"] == pytest.approx(16 / 8)
    assert row["bits_per_byte"] == pytest.approx(16 / (32 * math.log(2)), rel=1e-6)
    assert row["gradient_norm"] == 5.0  # of the last update
    assert row["skipped_steps"] == 0
    assert capsys.readouterr().out.startswith("step 2/40  0.721 bits/byte  ")


def test_a_skipped_step_is_told_and_spoils_no_mean(tmp_path, capsys):
    with _log(tmp_path) as log:
        log.after_step(1, _sums(math.nan, 5, 0))
        log.after_step(2, _sums(6.0, 2, 1))
    [row] = read_metrics(tmp_path / "metrics.jsonl")
    assert row["loss_nats_per_token"] == 3.0 and row["skipped_steps"] == 1
    assert "the loss of step 1 is nan" in capsys.readouterr().out


def test_skipped_steps_in_a_row_are_counted_anew_after_an_update(tmp_path):
    with _log(tmp_path) as log:
        for step, loss_nats in enumerate([math.inf, 1.0, math.inf], 1):
            log.after_step(step, _sums(loss_nats, 1, 0))
        log.after_step(4, _sums(math.nan, 1, 0))
        with pytest.raises(FloatingPointError, match=r"step 4 .*the 2\. such step"):
            log.flush()


def test_waiting_takes_no_more_than_all_of_the_time(tmp_path):
    """Steps of 1 s, done when they are dispatched, and waits of growing length."""
    now = [0.0]

    def spend(seconds):
        now[0] += seconds

    with _log(tmp_path, lambda: now[0]) as log:
        for step in range(1, 7):
            log.timed(lambda: spend(4.0 * step))  # noqa: B023 - called at once
            spend(1.0)
            log.after_step(step, _sums(6.0, 3, step))
        log.flush()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    shares = [row["waiting_for_data_share"] for row in rows]
    assert shares == pytest.approx([12 / 14, 28 / 30, 44 / 46])
    rates = [row["tokens_per_s"] for row in rows]
    assert rates == pytest.approx([6 / 14, 6 / 30, 6 / 46])
