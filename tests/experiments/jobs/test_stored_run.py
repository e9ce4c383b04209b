"""A run in a store: the newest whole checkpoint goes on elsewhere, and no fault of the store is hidden."""

import json

import pytest

from data_pipeline.storage.object_store import ObjectStore, StoreError
from experiments.jobs.stored_run import StoredRun
from retro_jax.runs.preemption import Preempted
from tests import object_stores
from tests.object_stores import BUCKET


@pytest.fixture
def store(monkeypatch, request) -> ObjectStore:
    object_stores.use(object_stores.endpoint(), monkeypatch)
    return ObjectStore(f"s3://{BUCKET}/{request.node.name}", attempts=1)


def _run(workdir, store, *steps: int, keep: int = 2) -> StoredRun:
    """Makes checkpoints of steps, and tells the run in the store of each."""
    run = StoredRun(store, workdir, keep=keep)
    workdir.mkdir(exist_ok=True)
    with run.kept():
        for step in steps:
            _checkpoint(workdir, step)
            run.save(step)
    return run


def _checkpoint(workdir, step: int) -> None:
    item = workdir / "checkpoints" / str(step) / "state"
    item.mkdir(parents=True)
    (item / "_METADATA").write_text(f"arrays of step {step}")
    (workdir / "run.json").write_text(json.dumps({"step": step}))
    (workdir / "metrics").mkdir(exist_ok=True)
    (workdir / "metrics" / "metrics.jsonl").write_text(f"losses to step {step}")


def _steps(workdir) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def test_the_newest_goes_on_elsewhere_with_what_it_needs(store, tmp_path, capsys):
    _run(tmp_path / "a", store, 4, 8, 12)
    assert store.whole() == ["step-00000008", "step-00000012"]
    assert not list((tmp_path / "a").glob(".tmp*"))
    _run(tmp_path / "b", store)
    assert "step 12 is fetched from s3://" in capsys.readouterr().out
    assert _steps(tmp_path / "b") == {"12"}
    for name in ("checkpoints/12/state/_METADATA", "run.json", "metrics/metrics.jsonl"):
        there, here = tmp_path / "a" / name, tmp_path / "b" / name
        assert here.read_text() == there.read_text()
    assert not list((tmp_path / "b").glob(".tmp*"))


def test_a_damaged_one_is_told_of_and_the_one_before_is_taken(store, tmp_path, capsys):
    _run(tmp_path / "a", store, 4, 8)
    path = f"{store.url}/step-00000008/run.json".removeprefix("s3://")
    store._files.pipe_file(path, b"{}")
    _run(tmp_path / "b", store)
    said = capsys.readouterr().out
    assert "the stored step 8 is not used" in said and "run.json is damaged" in said
    assert _steps(tmp_path / "b") == {"4"}
    store.remove("step-00000004")
    with pytest.raises(ValueError, match="holds no checkpoint that is whole"):
        _run(tmp_path / "c", store)


def test_what_is_newer_here_stays_and_is_stored(store, tmp_path):
    _run(tmp_path / "a", store, 4)
    _checkpoint(tmp_path / "a", 8)  # and killed before it was stored
    _run(tmp_path / "a", store)
    assert store.whole() == ["step-00000004", "step-00000008"]
    assert _steps(tmp_path / "a") == {"4", "8"}


def _fails(store, monkeypatch, times: int) -> None:
    real = store.put

    def put(name, files):
        nonlocal times
        times -= 1
        if times >= 0:
            raise StoreError(f"{store.url}: can't write")
        real(name, files)

    monkeypatch.setattr(store, "put", put)


def test_a_store_that_fails_once_is_told_of_and_gets_the_next(
    store, tmp_path, monkeypatch, capsys
):
    _fails(store, monkeypatch, times=1)
    _run(tmp_path / "a", store, 4, 8)
    assert "can't write; training goes on" in capsys.readouterr().out
    assert store.whole() == ["step-00000008"]


def test_a_last_checkpoint_that_is_not_stored_is_an_error(store, tmp_path, monkeypatch):
    _fails(store, monkeypatch, times=9)
    with pytest.raises(
        StoreError, match="step 4 is whole in .* start the same command"
    ):
        _run(tmp_path / "a", store, 4)


def test_who_is_preempted_stays_so_whatever_the_store_does(
    store, tmp_path, monkeypatch, capsys
):
    _fails(store, monkeypatch, times=9)
    run = StoredRun(store, tmp_path, keep=2)
    with pytest.raises(Preempted), run.kept():
        _checkpoint(tmp_path, 4)
        run.save(4)
        raise Preempted(4)
    assert "can't write; step 4 is whole" in capsys.readouterr().out


def test_two_in_one_workdir_are_refused(store, tmp_path):
    with StoredRun(store, tmp_path, keep=2).kept():  # noqa: SIM117
        with pytest.raises(ValueError, match="another process is storing"):
            _run(tmp_path, store)


def test_results_are_stored_whole(store, tmp_path):
    (tmp_path / "report.html").write_text("<p>")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "results.json").write_text("{}")
    StoredRun(store, tmp_path, keep=2).save_results()
    assert store.whole() == ["results"]
    assert store.described("results").keys() == {
        "report.html",
        "evaluation/results.json",
    }
