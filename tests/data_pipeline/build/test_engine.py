"""A stage that is killed anywhere ends, when run again, as if nothing had happened."""

import os
import shutil

import pytest

from data_pipeline.build import engine
from data_pipeline.build.engine import run_stage
from data_pipeline.build.local_engine import LocalEngine
from data_pipeline.storage import files
from tests.tiny_corpus import contents

SHARDS = {"a": 1, "b": 1, "c": 1}
NUM_REPLACES = 8  # building.json, two for each shard, stage.json


class Killed(BaseException):
    """No handler expects it, as none runs when a process is killed."""


def run(
    folder,
    made,
    *,
    settings=None,
    inputs=None,
    shards=SHARDS,
    text="text",
    with_engine=None,
):
    def make_shard(shard, shard_folder):
        assert not list(shard_folder.iterdir())
        (shard_folder / "one.txt").write_text(text + shard)
        (shard_folder / "deep").mkdir()
        (shard_folder / "deep" / "two.bin").write_bytes(shard.encode() * 1000)
        made.append(shard)
        yield 1

    settings = {"size": 1} if settings is None else settings
    return run_stage(
        folder,
        settings,
        inputs or {"before": "0"},
        dict.fromkeys(shards, 1),
        make_shard,
        with_engine or LocalEngine(),
    )


@pytest.fixture
def undisturbed(tmp_path):
    folder = tmp_path / "undisturbed" / "stage"
    return run(folder, []), contents(folder)


def whole(folder):
    return [shard for shard in SHARDS if (folder / shard).exists()]


def test_a_stage_runs_once(tmp_path, capsys):
    folder, made = tmp_path / "stage", []
    first = run(folder, made)
    assert made == list(SHARDS)
    before = contents(folder)
    assert run(folder, made) == first
    assert made == list(SHARDS)
    assert contents(folder) == before
    first_run, second_run = capsys.readouterr().out.splitlines()
    assert first_run.startswith("stage: 3 shards in ")
    assert second_run == "stage: up to date"


def test_stage_json_tells_every_file(tmp_path):
    folder = tmp_path / "stage"
    run(folder, [])
    described = files.read_json(folder / "stage.json")["files"]
    for shard in SHARDS:
        assert sorted(described[shard]) == ["deep/two.bin", "one.txt"]
        for name, entry in described[shard].items():
            assert entry["sha256"] == files.sha256_of(folder / shard / name)
            assert entry["size_bytes"] == (folder / shard / name).stat().st_size


@pytest.mark.parametrize("at", SHARDS)
@pytest.mark.parametrize("half_written", [False, True])
def test_killed_in_a_shard(tmp_path, undisturbed, at, half_written):
    folder = tmp_path / "stage"

    def make_shard(shard, shard_folder):
        if shard == at:
            if half_written:
                (shard_folder / "one.txt").write_text("hal")
            raise Killed
        (shard_folder / "one.txt").write_text("text" + shard)
        (shard_folder / "deep").mkdir()
        (shard_folder / "deep" / "two.bin").write_bytes(shard.encode() * 1000)
        yield 1

    with pytest.raises(Killed):
        run_stage(
            folder, {"size": 1}, {"before": "0"}, SHARDS, make_shard, LocalEngine()
        )
    assert not (folder / "stage.json").exists()
    made = []
    assert run(folder, made) == undisturbed[0]
    assert made == list(SHARDS)[list(SHARDS).index(at) :]
    assert contents(folder) == undisturbed[1]


@pytest.mark.parametrize("call", range(NUM_REPLACES + 1))
@pytest.mark.parametrize("done", [False, True])
def test_killed_at_a_rename(tmp_path, undisturbed, monkeypatch, call, done):
    folder, calls, replace = tmp_path / "stage", [], os.replace

    def killing(source, target):
        calls.append(target)
        if len(calls) - 1 == call and not done:
            raise Killed
        replace(source, target)
        if len(calls) - 1 == call:
            raise Killed

    monkeypatch.setattr(files.os, "replace", killing)
    if call == NUM_REPLACES:
        run(folder, [])  # there is no such call: all were tried
    else:
        with pytest.raises(Killed):
            run(folder, [])
    monkeypatch.undo()
    there, made = whole(folder), []
    assert run(folder, made) == undisturbed[0]
    assert made == [shard for shard in SHARDS if shard not in there]
    assert contents(folder) == undisturbed[1]


@pytest.mark.parametrize("entry", ["a", "stage.json", "building.json", "c"])
def test_killed_while_another_build_is_cleared(tmp_path, undisturbed, entry):
    folder = tmp_path / "stage"
    run(folder, [], settings={"size": 2}, text="other")
    path = folder / entry
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run(folder, []) == undisturbed[0]
    assert contents(folder) == undisturbed[1]


def test_clearing_takes_stage_json_first(tmp_path, monkeypatch):
    folder = tmp_path / "stage"
    run(folder, [])

    def killing(path, **_):
        raise Killed

    monkeypatch.setattr(engine.shutil, "rmtree", killing)
    with pytest.raises(Killed):
        run(folder, [], settings={"size": 2})
    assert not (folder / "stage.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"size": 2}},
        {"settings": {}},
        {"inputs": {"before": "1"}},
        {"shards": ("a", "b")},
        {"shards": ("b", "a", "c")},
    ],
)
def test_changes_make_the_stage_afresh(tmp_path, change):
    folder, made = tmp_path / "stage", []
    run(folder, [], text="old")
    run(folder, made, **change)
    assert made == list(change.get("shards", SHARDS))
    assert (folder / "a" / "one.txt").read_text() == "texta"
    names = {path.name for path in folder.iterdir()}
    assert names == {*made, "stage.json", "building.json"}


def test_half_made_stage_of_other_settings_is_not_gone_on_with(tmp_path, undisturbed):
    folder = tmp_path / "stage"
    run(folder, [], settings={"size": 2}, text="other")
    (folder / "stage.json").unlink()
    made = []
    assert run(folder, made) == undisturbed[0]
    assert made == list(SHARDS)
    assert contents(folder) == undisturbed[1]


def test_contents_that_stay_stop_a_change_from_spreading(tmp_path):
    made = []
    first = run(tmp_path / "one", [])
    run(tmp_path / "two", made, inputs={"one": first})
    again = run(tmp_path / "one", [], settings={"size": 2})
    assert again == first
    run(tmp_path / "two", made, inputs={"one": again})
    assert made == list(SHARDS)
    other = run(tmp_path / "one", [], settings={"size": 3}, text="other")
    assert other != first
    run(tmp_path / "two", made, inputs={"one": other})
    assert made == 2 * list(SHARDS)


@pytest.mark.parametrize(
    "name", ["b/one.txt", "b/deep/two.bin", "b/deep", "b/shard.json", "b"]
)
@pytest.mark.parametrize("truncated", [False, True])
def test_what_is_missing_or_cut_is_made_again(tmp_path, undisturbed, name, truncated):
    folder, made = tmp_path / "stage", []
    run(folder, [])
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    elif truncated:
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.unlink()
    assert run(folder, made) == undisturbed[0]
    # shard.json only serves a run that was broken off; stage.json has it all.
    assert made in ([], ["b"])
    assert made == ["b"] or name == "b/shard.json"
    if made:
        assert contents(folder) == undisturbed[1]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\0" * 100])
def test_a_damaged_stage_json_costs_no_shard(tmp_path, undisturbed, content):
    folder, made = tmp_path / "stage", []
    run(folder, [])
    (folder / "stage.json").unlink()
    if content is not None:
        (folder / "stage.json").write_bytes(content)
    assert run(folder, made) == undisturbed[0]
    assert made == []
    assert contents(folder) == undisturbed[1]


def test_leftovers_go_and_the_neighbourhood_stays(tmp_path, undisturbed):
    folder = tmp_path / "database" / "stage"
    (folder / "d").mkdir(parents=True)
    (folder / "d" / "shard.json").write_text("{}")
    (folder / ".tmp-a").mkdir()
    (folder / ".tmp-a" / "half").write_text("half")
    (folder / "stray").write_text("stray")
    for name in ("other-stage/a/file", "manifest.json"):
        path = tmp_path / "database" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    assert run(folder, []) == undisturbed[0]
    assert contents(folder) == undisturbed[1]
    around = contents(tmp_path / "database")
    assert around["other-stage/a/file"] == around["manifest.json"] == b"mine"


def test_the_first_of_two_attempts_stays(tmp_path):
    """As when a worker was thought lost and was not."""

    def write(text):
        def work(shard, made):
            (made / "one.txt").write_text(text)
            yield 1

        return work

    late = engine.make_shard(write("late"), tmp_path, "a")
    assert next(late) == 1
    rows, cost = engine.make_shard(write("first"), tmp_path, "a")
    assert (rows, cost.shard, cost.rows) == (1, "a", 1)
    assert list(late) == []  # and no cost: its shard is not there
    assert (tmp_path / "a" / "one.txt").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert list(engine.make_shard(write("again"), tmp_path, "a")) == []


def test_a_whole_attempt_that_was_not_renamed_goes(tmp_path, undisturbed):
    folder = tmp_path / "stage"
    run(folder, [])
    (folder / "stage.json").unlink()
    shutil.copytree(folder / "a", folder / ".tmp-a-0123")
    assert run(folder, []) == undisturbed[0]
    assert contents(folder) == undisturbed[1]


def test_attempts_of_lost_workers_go(tmp_path, undisturbed):
    class Losing(LocalEngine):
        def run(self, work, folder, shards, resource, on_report):
            (folder / ".tmp-b-0123").mkdir()
            super().run(work, folder, shards, resource, on_report)

    folder = tmp_path / "stage"
    assert run(folder, [], with_engine=Losing()) == undisturbed[0]
    assert contents(folder) == undisturbed[1]


@pytest.mark.parametrize("settings", [{"size": 1}, {"size": 2}])
def test_progress_counts_what_is_made_and_no_more(tmp_path, monkeypatch, settings):
    """All shards if a setting changed, though their folders are there; else the missing."""
    folder, totals = tmp_path / "stage", []
    run(folder, [])
    shutil.rmtree(folder / "b")
    progress = engine.Progress
    monkeypatch.setattr(
        engine,
        "Progress",
        lambda name, total, unit: totals.append(total) or progress(name, total, unit),
    )
    made = []
    run(folder, made, settings=settings)
    assert totals == [len(made)] == [1 if settings["size"] == 1 else 3]
