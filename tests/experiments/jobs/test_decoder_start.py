"""A pretrained decoder becomes a RETRO: one whole run, and starts that are refused."""

import json

import numpy as np
import pytest

from data_pipeline.build import pipeline
from data_pipeline.database import Database
from experiments.jobs import decoder_start
from experiments.jobs.job import Job
from retro_jax import pretrained
from retro_jax.config import MeshConfig
from retro_jax.devices import sharding
from tests import tiny_corpus, tiny_retrofit


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return tiny_retrofit.decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def run(decoder, tmp_path_factory):
    """Gives the job of a run that was trained and evaluated, and the run's folder."""
    folder = tmp_path_factory.mktemp("run")
    cfg = tiny_retrofit.experiment(decoder, tiny_retrofit.corpus(folder / "corpus"))
    workdir = folder / "work"
    workdir.mkdir()
    with tiny_corpus.toy_embedder():
        pipeline.Build(cfg.data, folder / "database").run()
        database = Database.open(folder / "database")
        assert database.embedder.width == 32  # loaded while the toy is in place

    def job(**changes):
        made = tiny_retrofit.experiment(decoder, cfg.data.corpus, **changes)
        made.validate()
        found = Job(made, workdir, folder / "database")
        found.database = database
        return found

    first = job()
    first.train(restart=False)
    first.evaluate()
    return job, workdir


def _results(workdir):
    return json.loads((workdir / "evaluation" / "results.json").read_text())


def test_everything_is_measured(run):
    _, workdir = run
    found = _results(workdir)
    assert set(found["conditions"]) == {"off", "on", "untrained", "random"}
    assert set(found["prompt"]["conditions"]) == {*found["conditions"], "prompt"}
    assert [each["from_tokens"] for each in found["by_longest_run"]] == [0, 8, 16]
    assert found["facts"]["asked"] == 8 >= found["facts"]["stated"] > 0
    assert set(found["facts"]["right"]) == {"off", "on", "edited"}
    assert all(np.isfinite(c["bits_per_byte"]) for c in found["conditions"].values())
    conditions = found["conditions"]
    assert conditions["off"]["bits_per_byte"] != conditions["on"]["bits_per_byte"]
