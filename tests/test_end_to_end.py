"""The whole path on a tiny corpus: train, evaluate, report, generate, go on, start anew."""

import contextlib
import json
import shutil

import pytest

from data_pipeline.build.pipeline import Build
from experiments.jobs import continuations, measurement, remote_database
from experiments.jobs.job import Job, generate_from_service
from retro_jax.runs.metrics import read_metrics
from tests import served, tiny_corpus
from tests.tiny_run import experiment


@pytest.fixture(scope="module")
def trained(tiny_corpus_folder, tiny_database, tmp_path_factory):
    """A workdir with a trained, evaluated run."""
    workdir = tmp_path_factory.mktemp("run")
    job = Job(experiment(tiny_corpus_folder), workdir, tiny_database.folder)
    job.database = tiny_database  # whose embedder is loaded
    (workdir / "settings.json").write_text("{}")
    job.train(restart=False)
    job.evaluate()
    return job, workdir


def _again(trained, tiny_database, corpus, **changes) -> Job:
    job = Job(experiment(corpus, **changes), trained[1], tiny_database.folder)
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
    cfg = experiment(tiny_corpus_folder)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="gone"):
        patch.setattr(continuations, "of_held_out", _gone)
        Job(cfg, workdir, tiny_database.folder).evaluate()
    kept = {name: value for name, value in before.items() if name != "samples"}
    assert json.loads(path.read_text()) == kept
    monkeypatch.setattr(measurement, "conditions", _gone)
    Job(cfg, workdir, tiny_database.folder).evaluate()
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
    cfg = experiment(tiny_corpus_folder, remat="full")
    cfg.data.num_neighbours = 4
    Build(cfg.data, folder).run()
    Job(cfg, workdir, folder).evaluate()
    assert "was trained on another dataset" in capsys.readouterr().out
    after = json.loads((workdir / "evaluation" / "results.json").read_text())
    for name, same in (("off", True), ("on", False)):
        bits = [r["conditions"][name]["bits_per_byte"] for r in (before, after)]
        assert (bits[0] == bits[1]) == same
    with pytest.raises(ValueError, match=r"other settings \(model, dataset\)"):
        Job(cfg, workdir, folder).train(restart=False)


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
    cfg = experiment(tiny_corpus_folder)
    cfg.evaluation.prompt = tiny_corpus.PLANTED
    with served.servers() as running:
        shard = running.shard(tiny_database, 0, 1)
        address = f"grpc://{running.router(tiny_database, shard.address).address}"
        with contextlib.closing(
            remote_database.RemoteDatabase.open(address)
        ) as database:
            generate_from_service(cfg, trained[1], database)
            assert capsys.readouterr().out == expected
            cfg.model.chunk_len = 4
            with pytest.raises(ValueError, match=f"{address} has chunks of 8 tokens"):
                generate_from_service(cfg, trained[1], database)
            cfg.model.chunk_len, cfg.model.ffw_width = 8, 48
            with pytest.raises(ValueError, match="was made with model.ffw_width = "):
                generate_from_service(cfg, trained[1], database)
            database.tokenizer.fingerprint = "another"
            message = "serves a database with tokenizer another, the model in "
            with pytest.raises(ValueError, match=message):
                generate_from_service(cfg, trained[1], database)


def test_other_settings_are_refused_or_put_the_old_run_aside(
    trained, tiny_database, tiny_corpus_folder, monkeypatch
):
    _, workdir = trained
    begun = []
    monkeypatch.setattr("experiments.jobs.job.train", lambda *_, **__: begun.append(1))
    job = _again(trained, tiny_database, tiny_corpus_folder, ffw_width=48)
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        job.train(restart=False)
    assert (workdir / "report.html").exists() and not begun
    job.train(restart=True)
    assert begun
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
