"""An evaluation that is stopped goes on with what it has measured."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.jobs import measurement
from experiments.jobs.kept_losses import KeptLosses
from retro_jax.evaluation import ChunkLosses

_LOSSES = ChunkLosses(
    loss_nats_X=np.array([1.5, 0.25]),
    bytes_X=np.array([3.0, 4.0]),
    tokens_X=np.array([1.0, 2.0]),
    documents_X=np.array([7, 9]),
)


def test_what_was_kept_comes_back_for_the_same_measurement_alone(tmp_path):
    kept = KeptLosses(tmp_path / "so-far", "abc")
    assert kept.get("on") is None
    kept.put("on", _LOSSES)
    found = kept.get("on")
    assert found is not None
    for field in dataclasses.fields(ChunkLosses):
        there, wanted = getattr(found, field.name), getattr(_LOSSES, field.name)
        np.testing.assert_array_equal(there, wanted)
        assert there.dtype == wanted.dtype
    assert kept.get("off") is None
    assert KeptLosses(tmp_path / "so-far", "abd").get("on") is None
    kept.clear()
    assert kept.get("on") is None and not (tmp_path / "so-far").exists()


@pytest.mark.parametrize("damage", [b"", b"PK", b"no archive at all"])
def test_a_damaged_file_is_measured_again(damage, tmp_path):
    kept = KeptLosses(tmp_path, "abc")
    kept.put("on", _LOSSES)
    (tmp_path / "on.npz").write_bytes(damage)
    assert kept.get("on") is None


def test_an_evaluation_that_was_stopped_measures_the_rest(run, monkeypatch):
    job, workdir = run
    measured, losses = [], measurement._losses

    def stopped(of, name, **kw):
        if name == "random":
            raise KeyboardInterrupt
        return losses(of, name, **kw)

    def counted(of, name, **kw):
        measured.append(name)
        return losses(of, name, **kw)

    def evaluated(name):
        made = job()
        made.run.cfg.evaluation.name = name
        made.run.cfg.evaluation.prompt_sequences = 0
        made.evaluate()
        path = workdir / "evaluation" / f"{name}.json"
        return json.loads(path.read_text())["conditions"]

    monkeypatch.setattr(measurement, "_losses", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluated("twice")
    monkeypatch.setattr(measurement, "_losses", counted)
    twice = evaluated("twice")
    assert measured == ["random"]
    assert twice == evaluated("once")
    assert measured == ["random", "off", "on", "untrained", "random"]
    assert not list((workdir / "evaluation").glob(".*-so-far"))
