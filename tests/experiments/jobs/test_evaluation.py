"""An evaluation knows what it measures and where its results belong."""

import shutil

import pytest

from experiments.jobs.evaluation import Evaluation
from experiments.jobs.job import Job
from tests.tiny_run import experiment


def test_a_database_without_sequences_names_the_command_that_makes_them(
    tiny_database, tiny_corpus_folder, tmp_path
):
    folder = shutil.copytree(tiny_database.folder, tmp_path / "database")
    shutil.rmtree(folder / "dataset")
    job = Job(experiment(tiny_corpus_folder), tmp_path, folder)
    with pytest.raises(ValueError, match="no training sequences.* `retro database`"):
        job.evaluate()


@pytest.mark.parametrize(
    ("held_out", "given", "name"),
    [
        ("", "", "results"),
        ("", "own", "own"),
        ("text/other pages.jsonl", "", "other-pages"),
        ("text/more/", "", "more"),
        ("text/more/", "own", "own"),
    ],
)
def test_results_are_named_by_their_text(
    held_out, given, name, tiny_database, tiny_corpus_folder, tmp_path
):
    cfg = experiment(tiny_corpus_folder)
    cfg.evaluation.held_out, cfg.evaluation.name = held_out, given
    run = Job(cfg, tmp_path, tiny_database.folder).run
    assert Evaluation(run).name == name


def test_limits_are_never_chosen_on_other_text(run):
    job, workdir = run
    made = job()
    made.run.cfg.evaluation.name = "other"
    (workdir / "reading.json").rename(workdir / "kept.json")
    try:
        with pytest.raises(ValueError, match="limits of reading for step 3"):
            Evaluation(made.run)._limits({}, 3)
    finally:
        (workdir / "kept.json").rename(workdir / "reading.json")
