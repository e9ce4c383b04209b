"""The whole path on a tiny corpus: train, evaluate, report, generate, go on, start anew."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.build.pipeline import Build
from data_pipeline.database import Database
from data_pipeline.text.tokenizer import Tokenizer
from experiments.jobs import continuations, export, measurement, remote_database
from experiments.jobs.job import (
    Job,
    generate_from_service,
    generate_without_retrieval,
)
from retro_jax.devices import sharding
from retro_jax.model import parameters
from retro_jax.runs.metrics import read_metrics
from tests import served, tiny_corpus
from tests.commands import ROOT
from tests.tiny_run import experiment


@pytest.fixture(scope="module")
def trained(tiny_corpus_folder, tiny_database, tmp_path_factory):
    """A workdir with a trained, evaluated run."""
    workdir = tmp_path_factory.mktemp("run")
    job = Job(experiment(tiny_corpus_folder), workdir, tiny_database.folder)
    job.run.database = tiny_database  # whose embedder is loaded
    (workdir / "settings.json").write_text("{}")
    job.train(restart=False)
    job.evaluate()
    return job, workdir


def _again(trained, tiny_database, corpus, **changes) -> Job:
    job = Job(experiment(corpus, **changes), trained[1], tiny_database.folder)
    job.run.database = tiny_database
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
    assert "has changed since the model was trained" in capsys.readouterr().err
    after = json.loads((workdir / "evaluation" / "results.json").read_text())
    for name, same in (("off", True), ("on", False)):
        bits = [r["conditions"][name]["bits_per_byte"] for r in (before, after)]
        assert (bits[0] == bits[1]) == same
    with pytest.raises(ValueError, match="other settings .*remat is 'dots' there"):
        Job(cfg, workdir, folder).train(restart=False)


@pytest.mark.usefixtures("toy_embedder")
def test_a_database_that_changed_keeps_the_model(
    trained, tiny_database, tiny_corpus_folder, tmp_path, capsys
):
    folder = shutil.copytree(tiny_database.folder, tmp_path / "database")
    workdir = shutil.copytree(trained[1], tmp_path / "run")
    results = workdir / "evaluation" / "results.json"
    before = json.loads(results.read_text())
    cfg = experiment(tiny_corpus_folder)
    Database.open(folder).add([{"id": "new", "text": tiny_corpus.PLANTED * 9}])
    with pytest.raises(ValueError, match="up to date with `retro database`"):
        Job(cfg, workdir, folder).evaluate()
    Build(cfg.data, folder).run()
    capsys.readouterr()
    Job(cfg, workdir, folder).train(restart=False)
    Job(cfg, workdir, folder).evaluate()
    said = capsys.readouterr().out
    assert "the database has changed since the model was trained: the model is" in said
    assert "training: up to date, 20 steps are done, of 20 asked for" in said
    after = json.loads(results.read_text())
    for name, same in (("off", True), ("random", False)):
        bits = [r["conditions"][name]["bits_per_byte"] for r in (before, after)]
        assert (bits[0] == bits[1]) == same
    # A longer run goes on with the new text; only who asks for it begins anew.
    cfg = experiment(tiny_corpus_folder, steps=21)
    Job(cfg, workdir, folder).train(restart=False)
    assert "going on from step 20 to step 21" in capsys.readouterr().out
    (workdir / "run.json").write_bytes((trained[1] / "run.json").read_bytes())
    Job(experiment(tiny_corpus_folder, steps=1), workdir, folder).train(restart=True)
    said = capsys.readouterr().out
    aside = workdir / "previous-1"
    assert f"--workdir={aside} --database={folder}" in said
    for kept in ("settings.json", "run.json", "checkpoints/21", "report.html"):
        assert (aside / kept).exists()
    Job(experiment(tiny_corpus_folder), aside, folder).evaluate()


def test_that_there_will_be_no_report_is_said_before_training(
    trained, tiny_database, tiny_corpus_folder, capsys, monkeypatch
):
    job = _again(trained, tiny_database, tiny_corpus_folder)
    chunks = {**tiny_database.manifest["chunks"], "test": 0}
    monkeypatch.setitem(tiny_database.manifest, "chunks", chunks)
    job.train(restart=False)
    job.evaluate()
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("the test split has no text")
    assert second.startswith("training: up to date")
    assert third.endswith("the model is trained, and there is no report")


def test_generation_continues_and_cites(
    trained, tiny_corpus_folder, tiny_database, capsys
):
    job = _again(trained, tiny_database, tiny_corpus_folder)
    job.run.cfg.evaluation.prompt = tiny_corpus.PLANTED
    job.generate()
    said = capsys.readouterr().out
    assert tiny_corpus.PLANTED in said
    sources = [line for line in said.splitlines() if line.startswith("[1] ")]
    assert sources, "no source is cited"
    known = tiny_database.snapshot.documents().column("id").to_pylist()
    assert sources[0].split()[1] in known


def test_generation_needs_no_database_with_retrieval_off(
    trained, tiny_corpus_folder, tmp_path, capsys
):
    cfg = experiment(tiny_corpus_folder)
    cfg.evaluation.prompt, cfg.evaluation.retrieval = tiny_corpus.PLANTED, False
    generate_without_retrieval(cfg, trained[1])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "retrieval is off: the model reads no passages"
    assert said[-1] == "(no sources: retrieval is off, by evaluation.retrieval)"
    with pytest.raises(ValueError, match="has no tokenizer.model, without which"):
        generate_without_retrieval(cfg, tmp_path)


def test_generation_through_a_service_is_the_databases(
    trained, tiny_database, tiny_corpus_folder, capsys
):
    job = _again(trained, tiny_database, tiny_corpus_folder)
    job.run.cfg.evaluation.prompt = tiny_corpus.PLANTED
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


_LOAD = """
import sys
import numpy as np
from retro_jax import Retro
given = np.load(sys.argv[2])
np.save(sys.argv[3], Retro.from_pretrained(sys.argv[1])(*given.values()))
loaded = {name.split(".")[0] for name in sys.modules}
print(sorted(loaded & {"tensorflow", "torch", "data_pipeline", "experiments"}))
"""


def test_a_name_of_the_hub_gives_the_model_again_without_tensorflow_or_torch(
    trained, tiny_database, tiny_corpus_folder, tmp_path
):
    job, workdir = trained
    cfg = experiment(tiny_corpus_folder)
    kept = tmp_path / "hub" / "models--owner--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    (kept / "snapshots").mkdir()
    folder = kept / "snapshots" / ("0" * 40)
    export.write(cfg, workdir, tiny_database.folder, str(folder))
    assert Tokenizer.load(folder).fingerprint == tiny_database.tokenizer.fingerprint
    # The cache has links to files, as it makes them.
    (kept / "blobs").mkdir()
    for path in list(folder.iterdir()):
        path.rename(kept / "blobs" / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    rng = np.random.default_rng(0)
    given = {
        "inputs_BL": rng.integers(1, 200, (1, 16)).astype(np.int32),
        "neighbours_BCNR": rng.integers(1, 200, (1, 2, 2, 16)).astype(np.int32),
        "neighbour_lengths_BCN": np.array([[[16, 9], [12, 0]]], np.int32),
    }
    np.savez(tmp_path / "given.npz", **given)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    paths = [str(tmp_path / name) for name in ("given.npz", "logits.npy")]
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, "owner/tiny", *paths],
        cwd=ROOT,
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    # On one device, as those who load a folder have it.
    params = jax.tree.map(jnp.asarray, sharding.on_host(job.run.restored()[1]))
    arrays = map(jnp.asarray, given.values())
    expected_BLV = parameters.rebuild(job.run.cfg.model, params)(*arrays)
    np.testing.assert_array_equal(np.load(paths[1]), expected_BLV)


def test_other_settings_are_refused_or_put_the_old_run_aside(
    trained, tiny_database, tiny_corpus_folder, monkeypatch
):
    _, workdir = trained
    begun = []
    monkeypatch.setattr(
        "experiments.jobs.training.train", lambda *_, **__: begun.append(1)
    )
    other = {"ffw_width": 48, "depth": 1, "cca_layers": (1,), "steps": 1}
    job = _again(trained, tiny_database, tiny_corpus_folder, **other)
    with pytest.raises(
        ValueError, match="other settings .*depth is 2 there and 1 here"
    ):
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
        with pytest.raises(ValueError, match="another version of the database"):
            job.run.sequences("train")
    finally:
        tiny_database.manifest.update(known)
