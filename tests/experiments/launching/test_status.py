"""The table of a launch, from what units have written so far."""

import json
import os
import socket
import subprocess
import sys

from experiments import workdirs
from experiments.configs import tiny
from experiments.launching import status
from tests.experiments.launching.units import unit

_HERE = {"host": socket.gethostname(), "pid": os.getpid()}


def test_step_loss_rate_and_time_left_of_a_run_that_is_under_way(tmp_path):
    made = unit(tmp_path, **{"train.seed": "1"})
    cfg = tiny.get_config()
    workdirs.record_settings(cfg, made.folder)
    row = {"step": 200, "loss_nats_per_token": 3.21, "tokens_per_s": 1024.0}
    (made.folder / "metrics").mkdir()
    (made.folder / "metrics" / "metrics.jsonl").write_text(
        json.dumps({"step": 100}) + "\n" + json.dumps(row) + "\n" + '{"step": 3'
    )
    made.record(state="running", job="train", attempts=2, **_HERE)
    (found,) = status.rows([made])
    # 500 steps of 2 sequences with 8 chunks of 64 tokens.
    assert found["training_left_s"] == 500 * 1024 / 1024
    head, line = status.lines([found])
    assert head.split()[:4] == ["unit", "state", "job", "step"]
    assert line.split("  ") == [
        *("unit-000", "running", "train", "200/700", "3.2100", "1,024   "),
        *("8 min 20 s", "-     ", "2     ", "train.seed=1"),
    ] or ("200/700  3.2100  1,024     8 min 20 s  -       2" in line)


def test_a_unit_without_a_start_waits_and_a_failed_one_has_said_why(tmp_path):
    waiting = unit(tmp_path, number=0)
    failed = unit(tmp_path, number=1)
    failed.record(state="failed", job="train", attempts=1, last_line="error: no room")
    lines = status.lines(status.rows([waiting, failed]))
    assert lines[1].split()[:2] == ["unit-000", "waiting"]
    assert lines[2].split()[:2] == ["unit-001", "failed"]
    assert lines[3] == f"unit-001 failed: error: no room ({failed.folder})"


def test_a_host_that_is_gone_without_a_word_is_lost(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    made = unit(tmp_path)
    made.record(state="running", **_HERE | {"pid": process.pid})
    assert status.rows([made])[0]["state"] == "lost"
    # Nothing is known of processes of other machines.
    made.record(host="elsewhere")
    assert status.rows([made])[0]["state"] == "running"
