"""A corpus has one folder of its own, however its path is written, and shares it with nobody."""

import argparse
import json
import os
from pathlib import Path

import pytest

from experiments import workdirs
from experiments.configs import tiny


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Two folders of the same last name, a home folder, and the current one."""
    for place in ("home/docs", "other/docs", "here/tiny"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_one_corpus_has_one_folder_however_it_is_written(places):
    (places / "link").symlink_to(places / "home" / "docs")
    ways = (
        "~/docs",
        "~/docs/",
        "~/docs/.",
        "~/x/../docs",
        "../home/docs",
        "../link",
        str(places / "home" / "docs"),
    )
    (found,) = {workdirs.default_workdir(way) for way in ways}
    assert found.parent.name == "work" and found.name.startswith("docs-")


def test_corpora_of_the_same_last_name_have_folders_of_their_own(places):
    corpora = ["~/docs", "../other/docs", "tiny", "Tiny", "", ".", "..", "/", "~"]
    corpora += ["python", "tfds:a/b", "hf:a/b", "hf:a/b:test", "docs:x", "-x", "it's"]
    corpora += ["a b", "a-b", "x$y", "x", "é\udce9", "é\udcea", "x" * 200, "x" * 201]
    found = [workdirs.default_workdir(corpus) for corpus in corpora]
    assert len(set(found)) == len(corpora)
    assert found[4] == workdirs.default_workdir("") == Path("work/retrofit")
    for folder in found:
        assert folder.parent.as_posix() == "work"
        assert len(folder.name) < 60 and folder.name.replace("-", "a")[0].isalnum()


def test_what_is_no_path_keeps_its_name(places):
    assert workdirs.corpus_identity("hf:NAME") == "hf:NAME"
    (places / "here" / "hf:NAME").mkdir()  # now it is one
    assert workdirs.corpus_identity("hf:NAME").endswith("/here/hf:NAME")
    assert workdirs.expanded("~nobody-at-all/x") == "~nobody-at-all/x"


def _database_of(*words: str) -> str:
    parser = argparse.ArgumentParser()
    workdirs.add_arguments(parser)
    return workdirs.database_of(parser.parse_args(words))


def test_flags_name_a_database(places):
    here = places / "here"
    assert _database_of() == str(here / "work/retrofit/database")
    assert _database_of("--database=~/db") == str(places / "home" / "db")
    assert _database_of("--workdir=~/run") == str(places / "home" / "run" / "database")
    assert _database_of("--database=grpc://host:1") == "grpc://host:1"
    own = workdirs.default_workdir("~/docs")
    assert _database_of("--corpus=~/docs") == str(here / own / "database")


def test_a_corpus_that_is_not_there_is_named(places):
    with pytest.raises(ValueError, match=r"there is no corpus .*/home/doc$"):
        _database_of("--corpus=~/doc")
    gone = workdirs.default_workdir("~/doc")
    gone.mkdir(parents=True)  # what was built from it when it was there
    assert _database_of("--corpus=~/doc").endswith(f"{gone}/database")


def test_a_database_of_another_corpus_is_refused(places):
    database = places / "db"
    database.mkdir()
    workdirs.check_corpus(database, "~/docs")  # there is none yet
    corpus = os.path.realpath("../other/docs")
    manifest = {"settings": {"corpus": corpus}}
    (database / "manifest.json").write_text(json.dumps(manifest))
    for asked in ("~/docs", "", "hf:NAME"):
        with pytest.raises(ValueError, match=f"was built from {corpus}, not from"):
            workdirs.check_corpus(database, asked)
    with pytest.raises(ValueError, match="not from .*/home/docs: name the corpus"):
        _database_of("--corpus=~/docs", f"--database={database}")
    _database_of(f"--database={database}")  # says nothing of a corpus
    workdirs.check_corpus(database, "../other/docs/")
    (places / "other").rename(places / "moved")
    workdirs.check_corpus(database, "../moved/docs")


def test_settings_of_a_part_leave_those_of_a_trained_model_alone(tmp_path):
    cfg = tiny.get_config()
    cfg.model.depth = 6
    workdirs.record_settings(cfg, tmp_path, ["data"])
    assert workdirs.kept_settings(tmp_path)["model"]["depth"] == 6
    (tmp_path / "run.json").write_text("{}")
    cfg.model.depth, cfg.data.num_neighbours = 7, 3
    workdirs.record_settings(cfg, tmp_path, ["data"])
    kept = workdirs.kept_settings(tmp_path)
    assert kept["model"]["depth"] == 6 and kept["data"]["num_neighbours"] == 3
    workdirs.record_settings(cfg, tmp_path)
    assert workdirs.kept_settings(tmp_path)["model"]["depth"] == 7


def test_without_a_corpus_a_configuration_has_a_folder_of_its_own():
    found = [
        workdirs.default_workdir("", config)
        for config in (
            "retrofit",
            "tiny",
            "experiments/configs/tiny.py",
            "tiny:baseline",
            "retrofit:HuggingFaceTB/SmolLM2-360M",
        )
    ]
    assert list(map(str, found)) == [
        "work/retrofit",
        "work/tiny",
        "work/tiny",
        "work/tiny-baseline",
        "work/retrofit-HuggingFaceTB-SmolLM2-360M",
    ]
