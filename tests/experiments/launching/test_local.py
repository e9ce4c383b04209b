"""Units on this machine: some at a time, again after kills and preemption, ended by Ctrl-C."""

import os
import signal
import threading
import time

import pytest

from experiments.launching import local
from tests.experiments.launching.units import unit

_LIMITS = local.Limits(parallel=3, restarts=2, grace_s=20)


def test_killed_and_preempted_units_go_on_and_failed_ones_do_not(tmp_path):
    out, said = tmp_path / "out", []
    once = [out / f"unit-{number:03}" for number in range(5)]
    units = [
        unit(out, ["say:fine"], number=0),
        unit(out, [f"once:{once[1]}:kill"], ["say:fine"], number=1),
        unit(out, [f"once:{once[2]}:exit:75"], number=2),
        unit(out, [f"once:{once[3]}:kill-host"], number=3),
        unit(out, ["say:error: wrong", "exit:2"], number=4),
        unit(out, ["kill"], number=5),
    ]
    assert local.run(units, _LIMITS, said.append) == 2
    states = [made.status()["state"] for made in units]
    assert states == ["finished"] * 4 + ["failed", "killed"]
    starts = [made.status()["attempts"] for made in units]
    assert starts == [1, 2, 2, 2, 1, 3]
    assert "unit-004: failed with status 2: error: wrong" in said
    assert sum("starts again" in line for line in said) == 3 + _LIMITS.restarts


def test_a_unit_waits_for_the_one_whose_model_it_starts_from(tmp_path):
    out, said = tmp_path / "out", []
    units = [
        unit(out, ["say:a"], number=0),
        unit(out, ["exit:2"], number=1),
        unit(out, ["say:b"], number=2, after="unit-000"),
        unit(out, ["say:c"], number=3, after="unit-001"),
    ]
    assert local.run(units, _LIMITS, said.append) == 2
    assert said.index("unit-002: starts") > said.index("unit-000: finished (1 of 4)")
    states = [made.status()["state"] for made in units]
    assert states == ["finished", "failed", "finished", "failed"]
    assert "unit-001, which is not finished" in units[3].status()["last_line"]
    assert not (units[3].folder / "host-0.log").exists()


def test_several_hosts_find_each_other_and_end_together(tmp_path):
    made = unit(tmp_path, ["say:here"], hosts=2)
    assert local.run([made], _LIMITS, lambda line: None) == 0
    assert {path.name for path in made.folder.glob("*.log")} == {
        "host-0.log",
        "host-1.log",
    }
    (first, second) = local._flags(2)
    assert first[:2] == second[:2] and first[0].startswith("--coordinator=127.0.0.1:")
    assert [first[2], second[2]] == ["--process_id=0", "--process_id=1"]


def test_hosts_of_a_unit_that_has_lost_one_are_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_REST_GRACE_S", 0.5)
    words = [f"once:{tmp_path}:exit:3", f"deaf:{tmp_path / 'deaf'}"]
    made = unit(tmp_path, words, hosts=2)
    began_s = time.monotonic()
    assert local.run([made], local.Limits(restarts=0), lambda line: None) == 2
    assert time.monotonic() - began_s < 30


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, local.INTERRUPTED), (signal.SIGTERM, 75)]
)
def test_a_launcher_that_is_asked_to_stop_lets_all_save(number, status, tmp_path):
    ready = [tmp_path / f"ready-{index}" for index in range(2)]
    units = [
        unit(tmp_path, [f"wait:{path}"], number=index)
        for index, path in enumerate(ready)
    ]
    units.append(unit(tmp_path, ["say:never"], number=2))
    _when(ready, lambda: os.kill(os.getpid(), number))
    limits = local.Limits(parallel=2, grace_s=20)
    handler = signal.getsignal(number)
    assert local.run(units, limits, lambda line: None) == status
    assert [made.status().get("state") for made in units] == ["preempted"] * 2 + [None]
    assert signal.getsignal(number) == handler


def test_who_does_not_stop_in_time_is_killed(tmp_path):
    ready, said = tmp_path / "ready", []
    made = unit(tmp_path, [f"deaf:{ready}"])
    _when([ready], lambda: os.kill(os.getpid(), signal.SIGINT))
    limits = local.Limits(grace_s=0.3)
    assert local.run([made], limits, said.append) == local.INTERRUPTED
    assert made.status()["state"] == "killed"
    assert "did not stop in time" in said[-1]
    with pytest.raises(ProcessLookupError):
        os.kill(made.status()["pid"], 0)


@pytest.mark.parametrize("name", ["parallel", "restarts", "grace_s"])
def test_limits_below_the_least_are_named(name):
    with pytest.raises(ValueError, match=f"--{name} must be at least"):
        local.Limits(**{name: -1}).validate()


def _when(paths, act) -> None:
    """Acts once all paths are there, while this thread launches."""

    def wait() -> None:
        end_s = time.monotonic() + 20
        while not all(path.exists() for path in paths) and time.monotonic() < end_s:
            time.sleep(0.02)
        act()

    threading.Thread(target=wait, daemon=True).start()
