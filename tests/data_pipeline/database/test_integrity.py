"""Files of another database, and flipped ones, are refused by name when it is opened."""

import json
import shutil

import numpy as np
import pytest

from data_pipeline.build import pipeline
from data_pipeline.database import Database
from data_pipeline.storage import files
from tests import tiny_corpus
from tests.changed_database import NEWS, OTHER_NEWS, flip, place_of, problems

pytestmark = pytest.mark.usefixtures("toy_embedder")


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
    ids = Database.open(folder).snapshot.documents().column("id").to_pylist()
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
            _ = Database.open(folder).snapshot.index()
        except ValueError as error:
            assert name in str(error)
        else:
            assert any(path.startswith(name) for path in problems(folder))
        for path, content in whole.items():
            path.write_bytes(content)
    assert not problems(folder)


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
    path = folder / "chunks" / "stage.json"
    content = path.read_bytes()
    flip(path, place_of(path, '"fingerprint'))
    with tiny_corpus.recorded() as made:
        pipeline.Build(tiny_corpus.config(tiny_corpus_folder), folder).run()
    assert not made and path.read_bytes() == content
