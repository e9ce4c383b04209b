"""Every file that is not as it was written is named, sequences and neighbours included."""

import shutil

import pyarrow.parquet
import pytest

from data_pipeline.database import Database, refreshed_neighbours, verify
from data_pipeline.sequences import batches
from tests.changed_database import NEWS, flip, place_of, problems

pytestmark = pytest.mark.usefixtures("toy_embedder")


def read(folder):
    return [*batches.Sequences(folder / "dataset" / "all", "train").in_order(4)]


def dataset_files(folder):
    files = sorted((folder / "dataset" / "all").rglob("*.*"))
    return [path for path in files if path.is_file() and path.name != "shard.json"]


def test_damaged_sequences_are_named_by_who_reads_and_by_verify(folder):
    assert len(read(folder)) and not problems(folder)
    names = {path.name.split("-")[0] for path in dataset_files(folder)}
    assert names == {"dataset_info.json", "features.json", "metadata.json", "retro"}
    for path in dataset_files(folder):
        content, name = path.read_bytes(), path.relative_to(folder).as_posix()
        flip(path, len(content) // 2)
        assert list(problems(folder)) == [name]
        if "validation" not in name and "test" not in name:
            with pytest.raises(ValueError, match=f"{path.name} is damaged"):
                read(folder)
        path.write_bytes(content[:-1])
        with pytest.raises(ValueError, match=f"{path.name} has .* bytes instead of"):
            read(folder)
        path.unlink()
        with pytest.raises(ValueError, match=f"{path.name} is missing|no dataset"):
            read(folder)
        assert list(problems(folder)) == [name]
        path.write_bytes(content)
    assert len(read(folder))


def test_damaged_records_are_named_in_training(folder):
    (path,) = folder.glob("dataset/all/retro/*/*train*")
    flip(path, -20)
    sequences = batches.Sequences(folder / "dataset" / "all", "train")
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        list(sequences.shuffled(4, seed=0, num_steps=len(sequences) // 4))


def test_the_description_of_the_sequences_is_checked(folder):
    path = folder / "dataset" / "stage.json"
    content = path.read_bytes()
    flip(path, place_of(path, '"sha256": "'))
    assert list(problems(folder)) == ["dataset/stage.json"]
    with pytest.raises(ValueError, match=r"dataset/stage.json is damaged"):
        read(folder)
    path.unlink()
    assert "is missing" in problems(folder)["dataset/stage.json"]
    path.write_bytes(content)
    shutil.rmtree(folder / "dataset")  # as compacting does
    assert not problems(folder)


def test_neighbours_of_a_version_are_verified(folder):
    database = Database.open(folder)
    database.add([{"id": "news", "text": NEWS}])
    refreshed_neighbours.refresh_neighbours(database.snapshot)
    assert not problems(folder)
    flip(folder / "versions/000001-neighbours/train/distances.npy", -1)
    assert list(problems(folder)) == ["versions/000001-neighbours/train/distances.npy"]
    (folder / "versions/000001-neighbours/test/shard.json").write_text("{")
    assert "versions/000001-neighbours/test/shard.json" in problems(folder)


@pytest.mark.parametrize("num_deleted", [1, 1000])
def test_a_compacted_database_is_verified(folder, num_deleted):
    """Every shard may be compacted; then what is left of one is made again."""
    database = Database.open(folder)
    ids: list[str] = []
    for table in database.snapshot.paths.document_tables("train"):
        found = pyarrow.parquet.read_table(table, columns=["id"]).column("id")
        ids += found.to_pylist()[:num_deleted]
    database.delete(ids)
    database.compact()
    assert not problems(folder)
    for seed in range(3):
        name, _, cosine = verify.recompute(Database.open(folder).snapshot, seed)
        assert name.startswith("compacted/") and cosine > 0.99999
