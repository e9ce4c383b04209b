"""A pretrained decoder and a run of its retrofit, once for all tests of jobs."""

import pytest

from tests import tiny_retrofit


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    """The folder of a tiny decoder; not to be changed."""
    return tiny_retrofit.decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def run(decoder, tmp_path_factory):
    """Gives what makes jobs of a run that was trained and evaluated, and its folder."""
    from data_pipeline.build import pipeline
    from data_pipeline.database import Database
    from experiments.jobs.job import Job
    from tests import tiny_corpus

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
        found.run.database = database
        return found

    first = job()
    first.train(restart=False)
    with tiny_corpus.toy_embedder():  # for the copy that questions of fact are asked of
        first.evaluate()
    return job, workdir
