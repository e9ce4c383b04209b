"""Each second of a run is counted once, over all the processes that the run took."""

import json

import jax
import pytest

from retro_jax.runs import goodput
from retro_jax.runs.preemption import Preempted


class _Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def _spent(path) -> dict:
    (attempt,) = json.loads(path.read_text())["attempts"]
    return attempt


def test_every_second_is_in_one_part(tmp_path):
    clock = _Clock()
    watch = goodput.Stopwatch(tmp_path / "time.json", age_s=4.0, clock=clock)
    clock.now_s += 2  # start
    watch.enter("steps")
    with watch.part("data"):
        clock.now_s += 3
        with watch.part("compile"):
            clock.now_s += 5
        clock.now_s += 1
    clock.now_s += 10
    watch.reached(1)
    watch.move(4.0, "compile")
    with watch.part("checkpoint"):
        clock.now_s += 2
    watch.write("finished")
    told = _spent(tmp_path / "time.json")
    assert told["seconds"] == {
        "start": 6.0,
        "data": 4.0,
        "compile": 9.0,
        "steps": 6.0,
        "checkpoint": 2.0,
        "evaluation": 0.0,
    }
    assert told["to_first_step_s"] == 25.0 and told["step"] == 1


def test_a_kill_leaves_what_was_written_some_seconds_before(tmp_path):
    clock = _Clock()
    watch = goodput.Stopwatch(tmp_path / "time.json", 10, clock=clock)
    watch.enter("steps")
    for step in range(11, 30):
        clock.now_s += 1
        watch.reached(step)
    told = _spent(tmp_path / "time.json")
    assert told["first_step"] == 10 and 25 <= told["step"] <= 29
    assert told["ended"] is None and told["seconds"]["steps"] == told["step"] - 10


def _attempt(began_s, now_s, first_step, step, ended=None, **seconds) -> dict:
    return {
        "began_s": began_s,
        "now_s": now_s,
        "first_step": first_step,
        "step": step,
        "ended": ended,
        "seconds": dict.fromkeys(goodput.PARTS, 0.0) | seconds,
    }


def _write(folder, attempts) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / goodput.FILE).write_text(json.dumps({"attempts": attempts}))


def test_steps_that_are_done_again_and_time_between_processes_do_not_count(tmp_path):
    killed = _attempt(0, 100, 0, 40, start=20.0, steps=80.0)
    preempted = _attempt(130, 200, 30, 60, "preempted", start=10.0, steps=60.0)
    # Then it is done; that it is made longer a week later is nobody's restart.
    done = _attempt(205, 255, 60, 80, "finished", start=10.0, steps=40.0)
    longer = _attempt(600_000, 600_050, 80, 90, "finished", steps=50.0)
    _write(tmp_path / "metrics", [killed, preempted, done, longer])
    _write(tmp_path / "evaluation", [_attempt(300, 330, 0, 0, evaluation=30.0)])
    found = goodput.summary(tmp_path)
    # Ten of the first 40 steps are done again: a quarter of 80 s.
    assert found["seconds"] == {
        "steps": 210.0,
        "redone": 20.0,
        "start": 40.0,
        "restarts": 35.0,
        "evaluation": 30.0,
        "data": 0.0,
        "compile": 0.0,
        "checkpoint": 0.0,
    }
    assert found["wall_s"] == 335.0 and found["processes"] == 5
    assert found["useful_share"] == pytest.approx(210 / 335)
    assert goodput.line(found).startswith(
        "63% of 5 min 35 s in useful steps (steps 63%"
    )
    both = goodput.total([found, found])
    assert both["wall_s"] == 670.0 and both["useful_share"] == found["useful_share"]


@pytest.mark.parametrize(
    ("raised", "ended"),
    [(None, "finished"), (Preempted(3), "preempted"), (OSError(), "failed")],
)
def test_a_process_says_how_it_ended_and_goes_behind_those_before(
    raised, ended, tmp_path
):
    _write(tmp_path, [_attempt(0, 100, 0, 40)])
    try:
        with goodput.measured(tmp_path) as watch:
            with watch.part("steps"):  # what is compiled in them is not theirs
                jax.jit(lambda x: x + 41).lower(1).compile()
            if raised:
                raise raised
    except (OSError, Preempted) as error:
        assert error is raised
    first, second = json.loads((tmp_path / goodput.FILE).read_text())["attempts"]
    assert first["step"] == 40 and second["ended"] == ended
    assert second["seconds"]["compile"] > 0 and second["seconds"]["start"] > 0
    assert second["now_s"] - second["began_s"] == pytest.approx(
        sum(second["seconds"].values()), abs=0.5
    )


def test_other_processes_than_the_first_write_nothing(tmp_path):
    with goodput.measured(tmp_path / "none", writes=False) as watch:
        watch.reached(1)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"attempts": 3}',
        '{"attempts": [{}]}',
        '{"attempts": [[]]}',
        "[" * 9999,
    ]
    + [
        json.dumps({"attempts": [_attempt(0, bad, 0, 1)]}) for bad in (1e300, "x", None)
    ],
)
def test_a_file_that_nobody_wrote_tells_of_no_time(text, tmp_path):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / goodput.FILE).write_text(text)
    assert goodput.summary(tmp_path) is None and goodput.total([]) is None
