"""A trace of the steps that were asked for, and of no others."""

import jax.numpy as jnp
import pytest

from retro_jax.runs.profiler import Profile


@pytest.fixture
def traces(monkeypatch) -> list[str]:
    """What the profiler was asked to do, in place of doing it."""
    asked: list[str] = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda path: asked.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: asked.append("stop"))
    return asked


def _train(profile: Profile, first: int, last: int, traces: list[str]) -> None:
    for step in range(first, last + 1):
        with profile.around(step):
            traces.append(str(step))
        profile.after(step, jnp.zeros(()))
    profile.close()


def test_only_its_steps_are_traced(traces, tmp_path, capsys):
    _train(Profile(tmp_path, (2, 3)), 1, 4, traces)
    assert traces == ["1", "start", "2", "3", "stop", "4"]
    assert str(tmp_path) in capsys.readouterr().out


def test_a_run_that_goes_on_within_them_traces_the_rest(traces, tmp_path):
    _train(Profile(tmp_path, (2, 9)), 8, 10, traces)
    assert traces == ["start", "8", "9", "stop", "10"]


def test_a_run_that_ends_within_them_writes_what_there_is(traces, tmp_path):
    _train(Profile(tmp_path, (2, 9)), 2, 3, traces)
    assert traces == ["start", "2", "3", "stop"]


@pytest.mark.parametrize("profile", [{"steps": ()}, {"steps": (1, 2), "writes": False}])
def test_nobody_asked(profile, traces, tmp_path):
    _train(Profile(tmp_path, **profile), 1, 3, traces)
    assert traces == ["1", "2", "3"]


def test_a_real_trace_is_where_tensorboard_looks(tmp_path):
    profile = Profile(tmp_path, (1, 1))
    with profile.around(1):
        done = jnp.ones((8, 8)) @ jnp.ones((8, 8))
    profile.after(1, done)
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
