"""Costs of builds are compared with the smallest, and planned for larger ones."""

import json

import numpy as np
import pytest

from data_pipeline.storage import costs
from tools.benchmark import growth


def built(folder, chunks, index_shards):
    """What a build leaves that took 10 s a million chunks and 2 s more for each search."""
    (folder / "chunks" / "train-00000").mkdir(parents=True)
    tokens = np.zeros((chunks, 4), np.uint16)
    np.save(folder / "chunks" / "train-00000" / "tokens.npy", tokens)
    manifest = {"chunks": {"train": chunks}, "index": {"shards": index_shards}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for stage in ("chunks", "embeddings", "index"):
        took_s = 10 * chunks / 1e6
        cost = costs.ShardCost(
            stage, "train-00000", 0, took_s, took_s, 5 * chunks, 10**9
        )
        costs.append(folder, cost)
    for shard in range(index_shards):
        took_s = 2 * chunks / 1e6
        name = f"{shard:05d}.train-00000"
        costs.append(
            folder,
            costs.ShardCost("searches", name, 0, took_s, took_s, 0, 2 * 10**9),
        )
    return folder


def test_growth_is_compared_with_the_smallest(tmp_path):
    sizes = [(1000, 1), (3000, 2), (8000, 4)]
    measured = [growth.measure(built(tmp_path / str(n), n, s)) for n, s in sizes]
    rows = growth.growth_rows(measured)
    assert {row["times the smallest"] for row in rows} == {1.0}
    embeddings = [row for row in rows if row["part"] == "embeddings"]
    assert [row["chunks"] for row in embeddings] == [1000, 3000, 8000]
    assert {row["CPU s a million"] for row in embeddings} == {10}
    assert {row["bytes a chunk"] for row in embeddings} == {5}
    searches = [row for row in rows if row["part"] == "searches"]
    assert {row["CPU s a million"] for row in searches} == {2}  # a shard of the index
    assert {row["peak GB"] for row in searches} == {2}


def test_a_plan_multiplies_searches_by_shards(tmp_path):
    measured = growth.measure(built(tmp_path, 8000, 4))
    row = growth.plan_row(measured, 80_000_000, cores=10, memory_gb=2)
    assert row["index shards"] == 40_000
    assert row["embeddings core h"] == pytest.approx(10 * 80 / 3600, rel=1e-3)
    searches_h = 2 * 80 * 40_000 / 3600
    assert row["searches core h"] == pytest.approx(searches_h, rel=1e-3)
    assert row["TB on disk"] == pytest.approx(15 * 80_000_000 / 1e12, rel=1e-3)
    assert row["TB of index"] == pytest.approx(5 * 80_000_000 / 1e12, rel=1e-3)
    assert row["machines"] == 1


def test_what_was_not_built_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not built"):
        growth.measure(tmp_path)
