"""Builds on a real Ray cluster of three nodes: as in one process, whatever is lost."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")

from data_pipeline.build import ray_engine
from data_pipeline.build.engine import run_stage
from data_pipeline.build.local_engine import LocalEngine
from data_pipeline.build.pipeline import Build
from data_pipeline.build.ray_engine import RayEngine
from tests import ray_work, sent_work, tiny_corpus
from tests.tiny_corpus import contents

# Ray's client leaves sockets and files to be closed at the process's end.
pytestmark = [
    pytest.mark.usefixtures("toy_embedder"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
_WRITE = sent_work.Write("text")
_SHARDS = {f"{number:02d}": 1 for number in range(12)}


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        # A busy machine's workers start late, and others' memory is not theirs.
        patch.setenv("RAY_worker_register_timeout_seconds", "300")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
        started = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False},
        )
        for _ in range(2):
            started.add_node(num_cpus=1)
        ray.init(
            address=started.address,
            runtime_env={"worker_process_setup_hook": ray_work.use_toy_embedder},
            log_to_driver=False,
        )
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def engine(cluster, tmp_path):
    return RayEngine("", tmp_path)


def made_by(engine, folder, work, shards=_SHARDS):
    run_stage(folder, {}, {}, shards, work, engine)
    return contents(folder)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "stage"
    return made_by(LocalEngine(), folder, _WRITE)


def test_a_build_on_a_cluster_has_the_bytes_of_a_local_one(
    tmp_path, engine, tiny_corpus_folder
):
    """The second half on the cluster, then the first, of one database each."""
    cfg = tiny_corpus.config(tiny_corpus_folder, index_shard_rows=300)
    folder, local = tmp_path / "ray", tmp_path / "local"
    Build(cfg, local).run("neighbours")
    Build(cfg, folder, engine).run("embeddings")
    for shard in ("train-00000", "test-00000"):  # as if it had been broken off there
        shutil.rmtree(folder / "embeddings" / shard)
    (folder / "embeddings" / "stage.json").unlink()
    Build(cfg, folder).run("embeddings")
    Build(cfg, folder, engine).run("neighbours")
    wanted, found = contents(local), contents(folder)
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == []
    assert len(list((folder / "index").glob("[0-9]*"))) > 2


def test_it_tells_what_the_local_engine_tells(tmp_path, engine, capsys):
    made_by(engine, tmp_path / "stage", _WRITE)
    *lines, last = capsys.readouterr().out.splitlines()
    assert sorted(lines) == [f"made {shard}" for shard in _SHARDS]
    assert last.startswith("stage: 12 shards in ")


def test_a_worker_that_is_killed(tmp_path, engine, expected):
    marks = tmp_path / "marks"
    marks.mkdir()
    work = ray_work.KilledOnce(_WRITE, "05", marks)
    assert made_by(engine, tmp_path / "stage", work) == expected
    assert len(list(marks.iterdir())) == 2


def test_a_shard_that_kills_each_worker(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(ray_engine, "_ATTEMPTS", 2)
    with pytest.raises(ValueError, match="a was given up after 2 attempts.*memory"):
        made_by(engine, tmp_path / "stage", sent_work.KilledAlways(), {"a": 1})


def test_a_mistake_is_what_the_local_engine_raises(tmp_path, engine, expected):
    for number, each in enumerate((LocalEngine(), engine)):
        folder = tmp_path / str(number)
        with pytest.raises(ValueError) as raised:
            made_by(each, folder, sent_work.Refuse("03"))
        assert str(raised.value) == "shard 03 is wrong: write it again"
        assert type(raised.value) is ValueError
        assert not (folder / "stage.json").exists()
    assert made_by(engine, folder, _WRITE).keys() == expected.keys()


def test_a_node_that_sees_another_folder(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(
        ray_engine, "_complaint", lambda probe: f"has another {probe.parent}"
    )
    with pytest.raises(ValueError, match="node .* has another .*that all nodes share"):
        RayEngine("", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_another_node_wrote_must_be_seen(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "_VISIBLE_S", 0.0)
    with pytest.raises(ValueError, match="b was made by another node"):
        (tmp_path / "a").mkdir()
        ray_engine._await_shards(tmp_path, ["a", "b"])


def test_workers_must_not_be_negative(tmp_path):
    with pytest.raises(ValueError, match="workers must not be negative, is -1"):
        RayEngine("", tmp_path, workers=-1)


def test_few_at_once(tmp_path, cluster, expected):
    one = RayEngine("", tmp_path, workers=1)
    assert made_by(one, tmp_path / "stage", _WRITE) == expected


def test_a_node_that_is_lost(tmp_path, cluster, engine, expected):
    """Last: the cluster is smaller afterwards."""
    marks = tmp_path / "marks"
    marks.mkdir()
    victim = cluster.list_all_nodes()[-1]
    work = ray_work.StuckOn(_WRITE, victim.node_id, marks)

    def remove():
        while not list(marks.iterdir()):
            time.sleep(0.05)
        cluster.remove_node(victim, allow_graceful=False)

    removing = threading.Thread(target=remove, daemon=True)
    removing.start()
    assert made_by(engine, tmp_path / "stage", work) == expected
    removing.join()
    assert len(list(marks.iterdir())) == 1


def test_the_command_says_that_no_cluster_answers(tmp_path):
    command = [sys.executable, "-m", "experiments.build_database", "--engine=ray"]
    command += ["--config=experiments/configs/tiny.py", f"--database={tmp_path / 'd'}"]
    command += ["--ray_address=127.0.0.1:1"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: no Ray cluster")
