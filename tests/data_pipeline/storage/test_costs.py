"""What builds record of their costs, and what the plan for a larger one makes of it."""

import json

import numpy as np
import pytest

from data_pipeline.build.engine import run_stage
from data_pipeline.build.local_engine import LocalEngine
from data_pipeline.storage import costs


def run(database, shards, fails_at=None, version=1):
    def work(shard, folder):
        if shard == fails_at:
            raise ValueError("fails")
        (folder / "file").write_bytes(b"x" * 100)
        yield "a line"
        yield 3
        yield 4

    return run_stage(
        database / "stage",
        {"version": version},
        {},
        dict.fromkeys(shards, 7),
        work,
        LocalEngine(),
    )


def test_each_shard_is_recorded_once(tmp_path):
    with pytest.raises(ValueError, match="fails"):
        run(tmp_path, "abc", fails_at="b")
    assert [cost.shard for cost in costs.read(tmp_path)] == ["a"]
    first = costs.read(tmp_path)[0]
    run(tmp_path, "abc")
    run(tmp_path, "abc")
    found = costs.read(tmp_path)
    assert [(cost.stage, cost.shard) for cost in found] == [
        ("stage", shard) for shard in "abc"
    ]
    assert found[0] == first  # made before, so not measured again
    assert {cost.rows for cost in found} == {7}
    assert {cost.size_bytes for cost in found} == {100}
    assert all(cost.peak_memory_bytes > 1e6 for cost in found)


def test_only_what_was_made_last_counts(tmp_path):
    run(tmp_path, "abc")
    costs.append(tmp_path, costs.ShardCost("other", "a", 0, 1.0, 1.0, 1, 1))
    run(tmp_path, "ab", version=2)  # with fewer shards
    lines = (tmp_path / costs.FILE).read_text().strip().splitlines()
    assert len(lines) == 1 + 3 + 1 + 1 + 2
    found = costs.read(tmp_path)
    assert [cost.stage + cost.shard for cost in found] == ["othera", "stagea", "stageb"]
    assert found[-1] == costs.ShardCost(**json.loads(lines[-1]))


def test_a_torn_line_is_passed_over(tmp_path):
    run(tmp_path, "a")
    whole = costs.read(tmp_path)
    with (tmp_path / costs.FILE).open("a") as file:
        file.write('\n{"stage": "stage", "sha')
    assert costs.read(tmp_path) == whole
    run(tmp_path, "ab")  # what comes after it is not lost with it
    assert [cost.shard for cost in costs.read(tmp_path)] == ["a", "b"]
    assert costs.read(tmp_path / "elsewhere") == []


def test_cpu_seconds_are_those_of_the_work():
    meter = costs.Stopwatch()
    values = np.random.default_rng(0).random(1_000_000)
    for _ in range(5):
        values = np.sort(np.sin(values))
    cost = meter.cost("stage", "a", 0, 0)
    assert 0.005 < cost.cpu_s < 10 * (cost.wall_s + 0.1)
