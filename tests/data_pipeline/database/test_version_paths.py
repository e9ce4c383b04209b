"""Where a version's files are: the build's, what stands in for them, what was added."""

import json

import pytest

from data_pipeline.database.version_paths import VersionPaths
from data_pipeline.database.versions import Version


@pytest.fixture
def paths(tmp_path):
    """A version with a compacted shard and two deltas; only what lists shards is there."""
    for stage, names in {
        "chunks": ["train-00000", "train-00001", "test-00000"],
        "index": ["00000"],
    }.items():
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "stage.json").write_text(json.dumps({"shards": names}))
    replaced = {
        "chunks/train-00001": "compacted/000003/train-00001",
        "documents/all/train-00001.parquet": "compacted/000003/train-00001/documents.parquet",
        "index/00000": "compacted/000003/index-00000",
    }
    version = Version(4, "base", ("000003", "000004"), replaced=replaced)
    return VersionPaths(tmp_path, version)


def named(paths, found):
    return [path.relative_to(paths.folder).as_posix() for path in found]


def test_shards_are_in_the_order_of_rows(paths):
    assert named(paths, paths.shards("chunks", "train")) == [
        "chunks/train-00000",
        "compacted/000003/train-00001",
        "deltas/000003",
        "deltas/000004",
    ]
    assert named(paths, paths.document_tables("train")) == [
        "documents/all/train-00000.parquet",
        "compacted/000003/train-00001/documents.parquet",
        "deltas/000003/documents.parquet",
        "deltas/000004/documents.parquet",
    ]
    assert named(paths, paths.index_shards()) == [
        "compacted/000003/index-00000",
        "deltas/000003",
        "deltas/000004",
    ]


def test_what_is_added_is_for_training_and_has_no_neighbours_of_the_build(paths):
    assert named(paths, paths.shards("chunks", "test")) == ["chunks/test-00000"]
    assert named(paths, paths.shards("neighbours", "train")) == [
        "neighbours/train-00000",
        "neighbours/train-00001",
    ]
    (changed,) = named(paths, [paths.changed_neighbours])
    assert changed == "versions/000004-neighbours"
