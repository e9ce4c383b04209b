"""A run's folder is its own: another process, another dataset or another run is refused."""

import json

import pytest

from data_pipeline.storage import locks
from experiments.jobs.job import Job
from tests.tiny_run import experiment


@pytest.mark.parametrize("doing", ["training", "evaluating"])
def test_a_workdir_in_use_is_refused(
    doing, tiny_database, tiny_corpus_folder, tmp_path
):
    """And nothing in it is touched, whatever was asked for."""
    job = Job(experiment(tiny_corpus_folder), tmp_path, tiny_database.folder)
    (tmp_path / "run.json").write_text('{"model": {"depth": 9}}')
    (tmp_path / "checkpoints").mkdir()
    message = (
        rf"another process is {doing} in {tmp_path}: wait until .* \(process \d+ on"
    )
    with (
        locks.locked(tmp_path / f".{doing}", f"{doing} in"),
        pytest.raises(ValueError, match=message),
    ):
        if doing == "training":
            job.train(restart=True)
        else:  # a run is not put aside while it is evaluated
            with pytest.raises(ValueError, match=message):
                job.evaluate()
            job.train(restart=True)
    assert (tmp_path / "checkpoints").is_dir()
    assert not (tmp_path / "previous-1").exists()
    assert not (tmp_path / "settings.json").exists()


def test_a_run_may_read_fewer_neighbours_than_there_are_and_is_another_run(
    tiny_database, tiny_corpus_folder, tmp_path
):
    jobs = {}
    for number in (1, 2, 3):
        cfg = experiment(tiny_corpus_folder)
        cfg.data.num_neighbours = number
        jobs[number] = Job(cfg, tmp_path, tiny_database.folder)
    batch = next(jobs[1].run.sequences("train").in_order(1))
    assert batch["neighbours_BCNR"].shape[2] == 1
    assert jobs[1].run.identity()["num_neighbours"] == 1
    assert "num_neighbours" not in jobs[2].run.identity()
    (tmp_path / "run.json").write_text(json.dumps(jobs[1].run.identity()))
    with pytest.raises(ValueError, match="num_neighbours is 1 there and None here"):
        jobs[2].run.begin(None, restart=False)
    with pytest.raises(ValueError, match=r"data.num_neighbours=2, this run has 3"):
        jobs[3].run.sequences("train")
