"""Facts are counted from what the run left behind."""

import pytest

from experiments.configs import tiny
from experiments.report import facts
from tests import run_files


def test_parameters_are_counted_from_the_settings():
    from retro_jax.model import parameters

    cfg = tiny.get_config()
    counted = parameters.num_parameters(
        parameters.named(parameters.skeleton(cfg.model))
    )
    said = {fact.name: fact.value for fact in facts.model(run_files.settings())}
    assert said["parameters"].startswith(f"{counted:,}, ")


def test_a_retrofit_says_how_it_began():
    for arg in ("", "baseline", "retrofit"):
        names = {fact.name for fact in facts.model(run_files.settings(arg))}
        assert ("retrofit" in names) == (arg == "retrofit")


def test_slow_stretches_weigh_more_in_the_share_of_waiting():
    rows = [
        {"tokens_per_s": 100.0, "waiting_for_data_share": 0.8},  # 0.01 s a token
        {"tokens_per_s": 300.0, "waiting_for_data_share": 0.0},  # a third of that
    ]
    assert facts.waiting_share(rows) == pytest.approx(0.6)


def test_how_to_repeat_it():
    assert facts.repeat(run_files.settings()) == [
        "git checkout abc1234",
        "retro train '--config=run:my runs/a' '--workdir=my runs/a-again'",
    ]
    dirty = run_files.settings() | {"commit": "abc1234-dirty"}
    assert "not committed" in facts.repeat(dirty)[0]


def test_sizes_for_readers():
    assert facts.megabytes(87_508) == "87.5 kB"
    assert facts.megabytes(7_804_604) == "7.80 MB"
