"""One host of a unit: its jobs in order, its status, and signals that are handed on."""

import os
import signal
import subprocess
import time

import pytest

from experiments import modules
from experiments.launching import host, work_units
from tests.experiments.launching.units import unit


def _run(made, *flags: str) -> int:
    return host.main([str(made.folder), *flags])


def test_jobs_run_in_order_and_the_status_says_so(tmp_path, capfd):
    made = unit(tmp_path, ["say:one", "touch:" + str(tmp_path / "first")], ["say:two"])
    assert _run(made) == 0
    assert capfd.readouterr().out.splitlines() == ["one", "two"]
    assert (made.folder / "host-0.log").read_text() == "one\ntwo\n"
    status = made.status()
    assert (status["state"], status["exit_status"], status["last_line"]) == (
        "finished",
        0,
        "two",
    )
    assert status["attempts"] == 1 and status["ended_s"] >= status["began_s"]
    assert made.is_finished and work_units.read_unit(made.folder) == made


@pytest.mark.parametrize(
    ("words", "status", "state"),
    [
        (["say:error: no such thing", "exit:2"], 2, "failed"),
        (["say:error: no such thing", "kill"], 137, "killed"),
        (["say:error: no such thing", "exit:75"], 75, "preempted"),
    ],
)
def test_a_job_that_ends_badly_is_the_last(words, status, state, tmp_path):
    made = unit(tmp_path, words, [f"touch:{tmp_path / 'second'}"])
    assert _run(made) == status
    assert made.status()["state"] == state
    assert made.status()["last_line"] == "error: no such thing"
    assert not (tmp_path / "second").exists()


def test_only_the_first_host_writes_the_status(tmp_path, monkeypatch):
    made = unit(tmp_path, ["say:hello"])
    assert _run(made, "--process_id=1") == 0
    assert made.status() == {} and (made.folder / "host-1.log").exists()
    monkeypatch.setenv("SLURM_PROCID", "2")
    assert _run(made, "--distributed") == 0
    assert made.status() == {} and (made.folder / "host-2.log").exists()
    assert _run(made, "--process_id=0") == 0
    assert made.is_finished


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_signals_of_preemption_reach_the_run_which_saves(number, tmp_path):
    ready = tmp_path / "ready"
    made = unit(tmp_path, [f"wait:{ready}"], ["say:never"])
    words = ["experiments.launching.host", str(made.folder)]
    with subprocess.Popen(modules.command(words), env=modules.environment()) as process:
        _wait_for(ready)
        process.send_signal(number)
        assert process.wait(20) == host.PREEMPTED
    assert made.status()["state"] == "preempted"


def test_a_host_whose_launcher_is_gone_saves_and_ends(tmp_path):
    ready = tmp_path / "ready"
    made = unit(tmp_path, [f"wait:{ready}"])
    words = ["experiments.launching.host", str(made.folder), "--tied"]
    with subprocess.Popen(
        modules.command(words), env=modules.environment(), stdin=subprocess.PIPE
    ) as process:
        _wait_for(ready)
        process.stdin.close()
        assert process.wait(20) == host.PREEMPTED
    assert made.status()["state"] == "preempted"


def test_what_is_no_work_unit_is_named(tmp_path, capsys):
    for words in ([str(tmp_path)], [str(tmp_path / "no")], []):
        assert host.main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and "work unit" in line


def _wait_for(path) -> None:
    end_s = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end_s, os.listdir(path.parent)
        time.sleep(0.02)
