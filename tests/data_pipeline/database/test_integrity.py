"""What a damaged database is refused by: files of others, lost and flipped ones, by name."""

import json
import shutil

import numpy as np
import pytest

from data_pipeline.database import Database, refreshed_neighbours, verify, versions
from data_pipeline.sequences import batches
from data_pipeline.storage import files
from tests import tiny_corpus

pytestmark = pytest.mark.usefixtures("toy_embedder")

NEWS = "Nine violet tortoises rehearsed an opera inside the marble lighthouse."
OTHER_NEWS = "Four bronze herons audited the accounts of a sleepy cathedral."


@pytest.fixture
def folder(tiny_database, tmp_path):
    return shutil.copytree(tiny_database.folder, tmp_path / "database")


def flip(path, place: int, bit: int = 0x01) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


def place_of(path, text: str) -> int:
    """Of the last byte of a text in a file."""
    return path.read_bytes().index(text.encode()) + len(text) - 1


def problems(folder) -> dict[str, str]:
    """What `verify` says, by file."""
    checked = verify.files(Database.open(folder))
    return {str(path.relative_to(folder)): said for path, said in checked if said}


def unseal(folder) -> None:
    """Takes from the files of versions what those of before do not have."""
    for path in (folder / "versions").glob("*.json"):
        facts = files.read_json(path)
        kept = {k: v for k, v in facts.items() if k not in ("checksum", "contents")}
        files.write_json(path, kept)


# Of other databases


def test_a_delta_of_another_database_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    first, second = Database.open(folder), Database.open(other)
    first.add([{"id": "news", "text": NEWS}])
    second.add([{"id": "news", "text": OTHER_NEWS}])
    assert first.fingerprint != second.fingerprint
    shutil.rmtree(folder / "deltas" / "000001")
    shutil.copytree(other / "deltas" / "000001", folder / "deltas" / "000001")
    with pytest.raises(ValueError, match=r"deltas/000001/shard.json is .*another"):
        Database.open(folder)
    # A later version goes on with what the first was made with.
    with pytest.raises(ValueError, match=r"deltas/000001"):
        first.delete([tiny_corpus.PLANTED_IN])
        Database.open(folder)


def test_a_stand_in_of_another_database_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    ids = Database.open(folder).documents().column("id").to_pylist()
    for path, name in ((folder, ids[0]), (other, ids[1])):
        opened = Database.open(path)
        opened.delete([name])
        opened.compact()
    names = {path.name for path in (folder / "compacted/000002").iterdir()}
    assert names == {"train-00000", "index-00000"}
    for name in names:
        place = folder / "compacted" / "000002" / name
        shutil.move(place, tmp_path / name)
        shutil.copytree(other / place.relative_to(folder), place)
        with pytest.raises(ValueError, match=f"000002/{name}/shard.json is .*another"):
            Database.open(folder)
        shutil.rmtree(place)
        shutil.move(tmp_path / name, place)
    Database.open(folder)


def test_versions_without_fingerprints_open_and_are_gone_on_with(folder):
    database = Database.open(folder)
    database.add([{"id": "news", "text": NEWS}])
    found = database.search([NEWS], 5)
    unseal(folder)
    assert set(json.loads((folder / "versions/000001.json").read_text())) == {
        *("base", "deltas", "deleted_sha256", "replaced")
    }
    old = Database.open(folder)
    assert old.search([NEWS], 5) == found and not old.state.contents
    old.delete([tiny_corpus.PLANTED_IN])  # from now on the delta has a fingerprint
    assert list(Database.open(folder).state.contents) == ["deltas/000001"]
    old.compact()
    assert Database.open(folder).version == 3 and not problems(folder)


@pytest.mark.parametrize(
    "stage", ["documents", "tokenizer", "chunks", "embeddings", "index", "neighbours"]
)
def test_every_shard_of_another_build_is_named(folder, stage):
    """Files of the same names and sizes, in which all may differ."""
    for shard in sorted(p.parent for p in folder.glob(f"{stage}/*/shard.json")):
        whole = {p: p.read_bytes() for p in shard.rglob("*") if p.is_file()}
        for path in whole:
            flip(path, -2)
        name = shard.relative_to(folder).as_posix()
        try:
            _ = Database.open(folder).index
        except ValueError as error:
            assert name in str(error)
        else:
            assert any(path.startswith(name) for path in problems(folder))
        for path, content in whole.items():
            path.write_bytes(content)
    assert not problems(folder)


# What names the version in force


def test_without_current_json_no_old_version_is_in_force(folder):
    database = Database.open(folder)
    database.delete([tiny_corpus.PLANTED_IN])
    current = folder / "versions" / "current.json"
    current.unlink()
    with pytest.raises(ValueError, match=r"current.json is missing.*name a version"):
        Database.open(folder)
    with pytest.raises(ValueError, match=r"current.json is missing"):
        database.add([{"text": NEWS}])  # one that was open
    current.write_text('{"version": 1}')  # as it says
    assert not Database.open(folder).has_document(tiny_corpus.PLANTED_IN)
    current.write_text('{"version": "1"}')
    with pytest.raises(ValueError, match=r"current.json is damaged"):
        Database.open(folder)


def test_current_json_is_there_before_the_first_version(folder, monkeypatch):
    order = []
    write = versions.write_sealed

    def recording(path, value):
        order.append((path.name, value.get("version")))
        write(path, value)

    monkeypatch.setattr(versions, "write_sealed", recording)
    database = Database.open(folder)
    database.add([{"text": NEWS}])
    first = [("current.json", 0), ("000001.json", None), ("current.json", 1)]
    assert order == first
    database.add([{"text": OTHER_NEWS}])
    assert order[3:] == [("000002.json", None), ("current.json", 2)]


def test_compacting_what_was_never_changed(folder):
    assert Database.open(folder).compact() == 0
    assert Database.open(folder).version == 0


@pytest.mark.parametrize("name", ["current", "oldest", "000003"])
def test_a_flip_in_what_names_versions_is_named_and_nothing_is_cleared(folder, name):
    database = Database.open(folder)
    database.add([{"id": "news", "text": NEWS}])
    database.delete(["news", tiny_corpus.PLANTED_IN])
    database.compact()
    path = folder / "versions" / f"{name}.json"
    content = path.read_bytes()
    before = sorted(folder.rglob("*"))
    refused = 0
    places = range(0, len(content), max(len(content) // 30, 1))
    for place in places:
        for bit in (0x01, 0x80):
            flip(path, place, bit)
            try:
                opened = Database.open(folder)
            except ValueError as error:
                assert f"{name}.json" in str(error)
                refused += 1
                with pytest.raises(ValueError, match=f"{name}.json"):
                    database.add([{"text": NEWS}])
                assert sorted(folder.rglob("*")) == before
            else:  # white space
                assert opened.version == 3
            path.write_bytes(content)
    assert refused > 1.3 * len(places)


def test_a_lost_version_file_is_named_and_nothing_is_cleared(folder):
    database = Database.open(folder)
    database.add([{"id": "news", "text": NEWS}])
    path = folder / "versions" / "000001.json"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match=r"versions/000001.json is missing"):
        Database.open(folder)
    with pytest.raises(ValueError, match=r"versions/000001.json is missing"):
        database.delete(["news"])
    path.write_bytes(content)
    assert Database.open(folder).has_document("news")


# What stages say of themselves


@pytest.mark.parametrize(
    "stage",
    ["documents", "tokenizer", "chunks", "embeddings", "index", "neighbours"],
)
def test_a_flip_in_stage_json_is_named(folder, stage):
    path = folder / stage / "stage.json"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    texts = ['"shards": [\n  "', '"sha256": "', '"fingerprint": "', '"settings', "}"]
    places = [place_of(path, text) for text in texts]
    for place in [*places, *rng.integers(0, len(content), 8)]:
        for bit in (0x01, 0x80):
            flip(path, int(place), bit)
            is_harmless = files.read_json(path) == json.loads(content)
            if not is_harmless:
                with pytest.raises(ValueError, match=f"{stage}/stage.json is damaged"):
                    Database.open(folder)
            path.write_bytes(content)
    Database.open(folder)


def test_a_build_mends_a_damaged_stage_json(folder, tiny_corpus_folder):
    from data_pipeline.build import pipeline

    path = folder / "chunks" / "stage.json"
    content = path.read_bytes()
    flip(path, place_of(path, '"fingerprint'))
    with tiny_corpus.recorded() as made:
        pipeline.Build(tiny_corpus.config(tiny_corpus_folder), folder).run()
    assert not made and path.read_bytes() == content


# Sequences


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
    refreshed_neighbours.refresh_neighbours(database)
    assert not problems(folder)
    flip(folder / "versions/000001-neighbours/train/distances.npy", -1)
    assert list(problems(folder)) == ["versions/000001-neighbours/train/distances.npy"]
    (folder / "versions/000001-neighbours/test/shard.json").write_text("{")
    assert "versions/000001-neighbours/test/shard.json" in problems(folder)
