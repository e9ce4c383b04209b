"""Training refuses what does not fit before it writes or compiles; a retrofit is its baseline's."""

import functools
import json
import shutil

import jax
import pytest

from experiments import workdirs
from experiments.jobs.job import Job
from tests.tiny_run import experiment


def test_training_refuses_it_before_anything_is_compiled(
    tiny_database, tiny_corpus_folder, tmp_path, monkeypatch
):
    job = Job(experiment(tiny_corpus_folder), tmp_path, tiny_database.folder)
    job.run.database = tiny_database
    monkeypatch.setitem(tiny_database.manifest, "fingerprint", "another")
    monkeypatch.setattr(jax, "jit", lambda *_, **__: pytest.fail("compiles"))
    with pytest.raises(ValueError, match="another version of the database"):
        job.train(restart=False)
    assert workdirs.kept_settings(tmp_path)["train"]["steps"] == 20


@pytest.fixture(scope="module")
def retrofitted(tiny_corpus_folder, tiny_database, tmp_path_factory):
    """A baseline's workdir and that of its retrofit, both trained and evaluated."""
    folder = tmp_path_factory.mktemp("retrofit")
    baseline, retro = folder / "baseline", folder / "retro"
    for workdir, changes in (
        (baseline, {"cca_layers": ()}),
        (retro, {"init_from": str(baseline)}),
    ):
        workdir.mkdir()
        (workdir / "settings.json").write_text("{}")
        job = _job(tiny_corpus_folder, workdir, tiny_database, **changes)
        job.train(restart=False)
        job.evaluate()
    return baseline, retro


def _job(corpus, workdir, database, *, init_from="", freeze=True, steps=10, **model):
    small = {"depth": 1, "cca_layers": (1,)}
    cfg = experiment(corpus, steps=steps, **small | model)
    cfg.init_from, cfg.train.freeze = init_from, freeze
    cfg.validate()
    job = Job(cfg, workdir, database.folder)
    job.run.database = database  # whose embedder is loaded
    return job


def _bits_per_byte(workdir) -> dict[str, float]:
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    return {
        name: measured["bits_per_byte"]
        for name, measured in results["conditions"].items()
    }


def test_a_retrofit_without_retrieval_is_its_baseline(retrofitted):
    baseline, retro = map(_bits_per_byte, retrofitted)
    assert retro["off"] == baseline["off"]
    assert retro["on"] != retro["off"] != retro["random"]
    report = (retrofitted[1] / "report.md").read_text()
    assert "exactly the baseline that was retrofitted" in report
    assert "exactly the baseline" not in (retrofitted[0] / "report.md").read_text()


def test_a_retrofit_is_known_by_what_it_began_with(
    retrofitted, tiny_corpus_folder, tiny_database, tmp_path, capsys
):
    """Not by where that lay; and nothing is written when it is refused."""
    baseline, retro = retrofitted
    job = functools.partial(_job, tiny_corpus_folder, retro, tiny_database)
    moved = tmp_path / "moved"
    shutil.copytree(baseline, moved)
    job(init_from=str(moved / "checkpoints")).train(restart=False)
    assert "training: up to date" in capsys.readouterr().out
    marker = (retro / "run.json").read_bytes()
    for changes in ({}, {"init_from": str(moved), "freeze": False}):
        with pytest.raises(ValueError, match=r"other settings \(init_from"):
            job(**changes).train(restart=False)
    longer = _job(tiny_corpus_folder, moved, tiny_database, cca_layers=(), steps=11)
    longer.train(restart=False)
    with pytest.raises(ValueError, match=r"other settings \(init_from"):
        job(init_from=str(moved)).train(restart=False)
    assert (retro / "run.json").read_bytes() == marker
    job().evaluate()  # needs no baseline
    assert "evaluation: up to date" in capsys.readouterr().out


def test_what_can_not_be_retrofitted_is_refused_before_anything_is_written(
    retrofitted, tiny_corpus_folder, tiny_database, tmp_path
):
    baseline, retro = retrofitted
    new = tmp_path / "new"
    job = functools.partial(_job, tiny_corpus_folder, new, tiny_database)
    for changes, message in (
        ({"init_from": str(tmp_path / "none")}, "no folder .*none"),
        ({"init_from": str(new)}, "own folder"),
        ({"init_from": str(retro)}, "is a RETRO"),
        ({"init_from": str(baseline), "ffw_width": 48}, "model.ffw_width = 32"),
    ):
        new.mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=message):
            job(**changes).train(restart=False)
        assert not list(new.iterdir())
    with pytest.raises(ValueError, match="is a baseline itself"):
        job(init_from=str(baseline), cca_layers=())
