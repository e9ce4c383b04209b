"""The whole path on a tiny corpus, and what the command lines say to mistakes."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from data_pipeline.build.pipeline import Build
from experiments.config import EvaluationConfig, Experiment
from experiments.jobs import job as jobs
from experiments.jobs import remote_database
from retro_jax.config import OptimizerConfig, TrainConfig
from retro_jax.runs.metrics import read_metrics
from tests import served, tiny_corpus, tiny_model

_ROOT = Path(__file__).parents[1]


def _experiment(corpus: str, *, steps: int = 20, **model) -> Experiment:
    cfg = tiny_model.config(depth=2, cca_layers=(2,), encoder_depth=1)
    cfg.chunk_len, cfg.neighbour_len = 8, 16
    cfg.share_embeddings = cfg.tie_output = True
    cfg.encoder_width = cfg.width
    for name, value in model.items():
        setattr(cfg, name, value)
    return Experiment(
        data=tiny_corpus.config(corpus),
        model=cfg,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        # One sequence for each of the eight simulated devices.
        train=TrainConfig(steps=steps, batch_size=8, log_every=5, checkpoint_every=10),
        evaluation=EvaluationConfig(num_samples=1, sample_tokens=5, batch_size=8),
    )


@pytest.fixture(scope="module")
def trained(tiny_corpus_folder, tiny_database, tmp_path_factory):
    """A workdir with a trained, evaluated run."""
    workdir = tmp_path_factory.mktemp("run")
    job = jobs.Job(_experiment(tiny_corpus_folder), workdir, tiny_database.folder)
    job.database = tiny_database  # whose embedder is loaded
    (workdir / "settings.json").write_text("{}")
    job.train(restart=False)
    job.evaluate()
    return job, workdir


def _again(trained, tiny_database, corpus, **changes) -> jobs.Job:
    job = jobs.Job(_experiment(corpus, **changes), trained[1], tiny_database.folder)
    job.database = tiny_database
    return job


def test_the_loss_falls_and_every_condition_is_measured(trained):
    _, workdir = trained
    rows = read_metrics(workdir / "metrics" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert rows[-1]["bits_per_byte"] < rows[0]["bits_per_byte"]
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    assert set(results["conditions"]) == {"on", "off", "random"}
    values = [row["bits_per_byte"] for row in results["conditions"].values()]
    assert len(set(values)) == 3  # retrieval reaches the logits, chance differs from it
    assert results["conditions"]["off"]["minus_off"] == 0
    assert results["samples"][0]["sources"]


def test_the_report_names_the_sources(trained):
    _, workdir = trained
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    for name in ("report.html", "report.md"):
        text = (workdir / name).read_text()
        for source in results["samples"][0]["sources"]:
            assert source["document_id"] in text


def test_a_second_run_uses_everything_again(
    trained, tiny_database, tiny_corpus_folder, capsys
):
    job = _again(trained, tiny_database, tiny_corpus_folder)
    job.train(restart=False)
    job.evaluate()
    said = capsys.readouterr().out
    assert "training: up to date" in said
    assert "evaluation: up to date" in said


@pytest.mark.usefixtures("toy_embedder")
def test_what_was_measured_is_kept_if_samples_fail(
    trained, tiny_database, tiny_corpus_folder, tmp_path, monkeypatch
):
    workdir = shutil.copytree(trained[1], tmp_path / "run")
    path = workdir / "evaluation" / "results.json"
    before = json.loads(path.read_text())
    path.unlink()
    cfg = _experiment(tiny_corpus_folder)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="gone"):
        patch.setattr(jobs.continuations, "of_held_out", _gone)
        jobs.Job(cfg, workdir, tiny_database.folder).evaluate()
    kept = {name: value for name, value in before.items() if name != "samples"}
    assert json.loads(path.read_text()) == kept
    monkeypatch.setattr(jobs.measurement, "conditions", _gone)
    jobs.Job(cfg, workdir, tiny_database.folder).evaluate()
    assert json.loads(path.read_text()) == before


def _gone(*_):
    raise OSError("gone")


@pytest.mark.usefixtures("toy_embedder")
def test_a_model_is_measured_with_other_neighbours_than_it_was_trained_with(
    trained, tiny_database, tiny_corpus_folder, tmp_path, capsys
):
    """The paper trains with 2 and evaluates with up to 100; speed may be another, too."""
    folder = shutil.copytree(tiny_database.folder, tmp_path / "database")
    workdir = shutil.copytree(trained[1], tmp_path / "run")
    before = json.loads((workdir / "evaluation" / "results.json").read_text())
    cfg = _experiment(tiny_corpus_folder, remat="full")
    cfg.data.num_neighbours = 4
    Build(cfg.data, folder).run()
    jobs.Job(cfg, workdir, folder).evaluate()
    assert "was trained on another dataset" in capsys.readouterr().out
    after = json.loads((workdir / "evaluation" / "results.json").read_text())
    for name, same in (("off", True), ("on", False)):
        bits = [r["conditions"][name]["bits_per_byte"] for r in (before, after)]
        assert (bits[0] == bits[1]) == same
    with pytest.raises(ValueError, match=r"other settings \(model, dataset\)"):
        jobs.Job(cfg, workdir, folder).train(restart=False)


def test_that_there_will_be_no_report_is_said_before_training(
    trained, tiny_database, tiny_corpus_folder, capsys, monkeypatch
):
    job = _again(trained, tiny_database, tiny_corpus_folder)
    chunks = {**tiny_database.manifest["chunks"], "test": 0}
    monkeypatch.setitem(tiny_database.manifest, "chunks", chunks)
    job.train(restart=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("the test split has no text")
    assert second.startswith("training: up to date")


def test_generation_continues_and_cites(
    trained, tiny_corpus_folder, tiny_database, capsys
):
    job = _again(trained, tiny_database, tiny_corpus_folder)
    job._cfg.evaluation.prompt = tiny_corpus.PLANTED
    job.generate()
    said = capsys.readouterr().out
    assert tiny_corpus.PLANTED in said
    sources = [line for line in said.splitlines() if line.startswith("[1] ")]
    assert sources, "no source is cited"
    known = tiny_database.snapshot.documents().column("id").to_pylist()
    assert sources[0].split()[1] in known


def test_generation_through_a_service_is_the_databases(
    trained, tiny_database, tiny_corpus_folder, capsys
):
    job = _again(trained, tiny_database, tiny_corpus_folder)
    job._cfg.evaluation.prompt = tiny_corpus.PLANTED
    job.generate()
    expected = capsys.readouterr().out
    assert "[1] " in expected
    cfg = _experiment(tiny_corpus_folder)
    cfg.evaluation.prompt = tiny_corpus.PLANTED
    with served.servers() as running:
        shard = running.shard(tiny_database, 0, 1)
        address = f"grpc://{running.router(tiny_database, shard.address).address}"
        with contextlib.closing(
            remote_database.RemoteDatabase.open(address)
        ) as database:
            jobs.generate_from_service(cfg, trained[1], database)
            assert capsys.readouterr().out == expected
            cfg.model.chunk_len = 4
            with pytest.raises(ValueError, match=f"{address} has chunks of 8 tokens"):
                jobs.generate_from_service(cfg, trained[1], database)
            cfg.model.chunk_len, cfg.model.ffw_width = 8, 48
            with pytest.raises(ValueError, match="was made with model.ffw_width = "):
                jobs.generate_from_service(cfg, trained[1], database)
            database.tokenizer.fingerprint = "another"
            message = "serves a database with tokenizer another, the model in "
            with pytest.raises(ValueError, match=message):
                jobs.generate_from_service(cfg, trained[1], database)


def test_other_settings_are_refused_or_put_the_old_run_aside(
    trained, tiny_database, tiny_corpus_folder
):
    _, workdir = trained
    other = {"ffw_width": 48, "depth": 1, "cca_layers": (1,), "steps": 1}
    job = _again(trained, tiny_database, tiny_corpus_folder, **other)
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        job.train(restart=False)
    assert (workdir / "report.html").exists()
    job.train(restart=True)
    assert (workdir / "previous-1" / "report.html").exists()
    assert list((workdir / "previous-1" / "report_files").glob("*.png"))
    assert (workdir / "previous-1" / "checkpoints" / "20").exists()
    assert not (workdir / "report.html").exists()


def test_a_dataset_of_another_database_is_refused(
    trained, tiny_database, tiny_corpus_folder
):
    job = _again(trained, tiny_database, tiny_corpus_folder)
    known = dict(tiny_database.manifest)
    try:
        tiny_database.manifest["fingerprint"] = "another"
        with pytest.raises(ValueError, match="another database"):
            job._sequences("train")
    finally:
        tiny_database.manifest.update(known)


def test_training_refuses_it_before_anything_is_compiled(
    tiny_database, tiny_corpus_folder, tmp_path, monkeypatch
):
    job = jobs.Job(_experiment(tiny_corpus_folder), tmp_path, tiny_database.folder)
    job.database = tiny_database
    monkeypatch.setitem(tiny_database.manifest, "fingerprint", "another")
    monkeypatch.setattr(jax, "jit", lambda *_, **__: pytest.fail("compiles"))
    with pytest.raises(ValueError, match="another database"):
        job.train(restart=False)


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
    cfg = _experiment(corpus, steps=steps, **small | model)
    cfg.init_from, cfg.train.freeze = init_from, freeze
    cfg.validate()
    job = jobs.Job(cfg, workdir, database.folder)
    job.database = database  # whose embedder is loaded
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
        with pytest.raises(ValueError, match=r"other settings \(init_from\)"):
            job(**changes).train(restart=False)
    longer = _job(tiny_corpus_folder, moved, tiny_database, cca_layers=(), steps=11)
    longer.train(restart=False)
    with pytest.raises(ValueError, match=r"other settings \(init_from\)"):
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


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        env={**os.environ, **environment},
        check=False,
        timeout=120,
    )


_TINY = "--config=experiments/configs/tiny.py"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("experiments.main", _TINY, "--workdir=/tmp/none", "--job=fly"), "fly"),
        (("experiments.main", _TINY, "--workdir={tmp}"), "job"),
        (
            ("experiments.main", _TINY, "--workdir={tmp}", "--job=train"),
            "build it with python -m experiments.build_database",
        ),
        (
            (
                "experiments.main",
                _TINY,
                "--workdir={tmp}",
                "--job=train",
                "--database=grpc://localhost:1",
            ),
            "--job=train needs the database's folder: grpc://localhost:1 is a service",
        ),
        (
            (
                "experiments.build_database",
                _TINY,
                "--database={tmp}",
                "--config.data.corpus=/no/such/place",
            ),
            "/no/such/place",
        ),
        (
            (
                "experiments.build_database",
                _TINY,
                "--database={tmp}",
                "--config.data.chunk_len=0",
            ),
            "data.chunk_len",
        ),
        (
            (
                "experiments.build_database",
                _TINY,
                "--database={tmp}",
                "--stage=nothing",
            ),
            "nothing",
        ),
        (
            ("experiments.build_database", _TINY, "--database=/proc/nothing"),
            "can't write to /proc/nothing",
        ),
        (("experiments.build_database", _TINY, "--database={tmp}", "extra"), "extra"),
        (
            (
                "experiments.build_database",
                _TINY,
                "--database={tmp}",
                "--ray_address=a",
            ),
            "--ray_address is for --engine=ray",
        ),
        (
            ("experiments.build_database", _TINY, "--database={tmp}", "--workers=-1"),
            "workers must not be negative, is -1",
        ),
        (
            (
                "experiments.main",
                _TINY,
                "--workdir={tmp}",
                "--job=train",
                "--config.train.stepz=3",
            ),
            "stepz",
        ),
        (
            (
                "experiments.main",
                _TINY,
                "--workdir={tmp}",
                "--job=train",
                "--config.train.steps=abc",
            ),
            "abc",
        ),
        (
            ("experiments.main", f"{_TINY}:huge", "--workdir={tmp}", "--job=train"),
            "huge",
        ),
        (
            ("experiments.main", "--config=no.py", "--workdir={tmp}", "--job=train"),
            "no.py",
        ),
    ],
)
def test_mistakes_end_in_a_line_and_not_in_a_traceback(arguments, expected, tmp_path):
    made = _run(*(word.format(tmp=tmp_path) for word in arguments))
    assert made.returncode not in (0, -6, -11)
    assert expected in made.stderr
    assert "Traceback" not in made.stderr
    assert not (tmp_path / "manifest.json").exists()
