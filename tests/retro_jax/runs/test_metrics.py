import json
import math
import subprocess
import sys

import pytest

from retro_jax.runs import metrics


def test_bits_per_byte():
    assert metrics.bits_per_byte(10 * math.log(2), 5) == pytest.approx(2.0)
    assert math.isnan(metrics.bits_per_byte(0.0, 0))


def test_rows_are_read_as_they_were_written(tmp_path):
    writer = metrics.MetricsWriter(tmp_path / "deep" / "er", first_step=0)
    writer.write(1, {"loss": 0.1})
    path = tmp_path / "deep" / "er" / "metrics.jsonl"
    assert metrics.read_metrics(path) == [{"step": 1, "loss": 0.1}]  # at once
    writer.write(2, {"loss": 1 / 3, "rate": 7})
    writer.close()
    assert metrics.read_metrics(path)[1] == {"step": 2, "loss": 1 / 3, "rate": 7}
    assert list(path.parent.glob("events.out.tfevents.*"))


def test_rows_past_the_resume_step_are_dropped(tmp_path):
    for first_step, losses in ((0, {1: 1.0, 2: 2.0, 3: 3.0}), (2, {3: 30.0})):
        writer = metrics.MetricsWriter(tmp_path, first_step=first_step)
        for step, loss in losses.items():
            writer.write(step, {"loss": loss})
        writer.close()
    rows = metrics.read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1), (2, 2), (3, 30)]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_last_line_cut_short_is_left_out_and_written_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 1.0}) + '\n{"step": 2, "lo')
    assert metrics.read_metrics(path) == [{"step": 1, "loss": 1.0}]
    writer = metrics.MetricsWriter(tmp_path, first_step=5)
    writer.write(6, {"loss": 6.0})
    writer.close()
    assert [row["step"] for row in metrics.read_metrics(path)] == [1, 6]


def test_no_file_has_no_rows(tmp_path):
    assert metrics.read_metrics(tmp_path / "metrics.jsonl") == []


def test_rates_are_since_last_asked():
    times_s = iter([0.0, 4.0, 6.0])
    rate = metrics.Rate(clock=lambda: next(times_s))
    rate.add(tokens=100, waited_s=1.0)
    rate.add(tokens=100, waited_s=1.0)
    until = rate.moment()
    rate.add(waited_s=1.5)  # for the step after: not of what is asked for now
    assert rate.take(until) == {"tokens_per_s": 50.0, "waiting_for_data_share": 0.5}
    rate.add(tokens=10)
    until = rate.moment()
    assert rate.take(until) == {"tokens_per_s": 5.0, "waiting_for_data_share": 0.75}


def test_nothing_needs_shared_memory(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system", "/dev/shm")

    monkeypatch.setattr("_multiprocessing.SemLock", refuse)
    writer = metrics.MetricsWriter(tmp_path, first_step=4)
    writer.write(5, {"loss": 0.5, "rate": math.inf})
    writer.close()
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    [path] = tmp_path.glob("events.out.tfevents.*")
    data, events = path.read_bytes(), []
    while data:  # a length and its checksum, the event and its checksum
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    version, start, scalar = events
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, SessionLog.START)
    assert (scalar.step, scalar.summary.value[0].tag) == (5, "loss")
    assert scalar.summary.value[0].simple_value == 0.5


_WRITES = """
import sys
from pathlib import Path
from retro_jax.runs.metrics import MetricsWriter
sys.path.insert(0, sys.argv[1])
MetricsWriter(Path(sys.argv[1]), first_step=0).close()
import torch
"""


def test_torch_is_not_imported_for_nothing(tmp_path):
    """Here it is a module that ends the process; it can be imported afterwards."""
    (tmp_path / "torch.py").write_text("raise SystemExit('imported')")
    command = [sys.executable, "-c", _WRITES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == "imported\n"
    assert list(tmp_path.glob("events.out.tfevents.*"))  # it came that far


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 s"),
        (12.4, "12 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7625, "2 h 07 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations_for_people(seconds, text):
    assert metrics.duration(seconds) == text


def test_a_line_is_said_at_once(capsys):
    metrics.say("step 1")
    assert capsys.readouterr().out == "step 1\n"
