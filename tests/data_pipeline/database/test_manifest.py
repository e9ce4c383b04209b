"""A manifest is refused if it is damaged, of another format or of other files."""

import pytest

from data_pipeline.database import Database, manifest
from data_pipeline.storage.files import read_sealed, write_sealed
from tests.toy_embedder import ToyEmbedder


def change_manifest(folder, **changes):
    manifest = read_sealed(folder / "manifest.json")
    write_sealed(folder / "manifest.json", manifest | changes)


def test_no_database(tmp_path, folder):
    with pytest.raises(ValueError, match="holds no finished database.*retro database"):
        Database.open(tmp_path / "nowhere")


def test_a_damaged_manifest(folder):
    """Every value in it counts: a recall that is read wrong is a false promise."""
    path = folder / "manifest.json"
    whole = path.read_text()
    assert '"recall@2": 1.0' in whole
    for damaged in ("{", "", whole.replace('"recall@2": 1.0', '"recall@2": 1.1')):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="manifest.json is damaged: run the build"):
            Database.open(folder)


@pytest.mark.parametrize("version", [0, manifest.FORMAT_VERSION + 1, None])
def test_another_format(folder, version):
    change_manifest(folder, format_version=version)
    with pytest.raises(ValueError, match=f"format {version}, this code reads 1"):
        Database.open(folder)


@pytest.mark.parametrize(
    "stage", ["documents", "tokenizer", "chunks", "embeddings", "index", "neighbours"]
)
def test_a_manifest_of_other_files(folder, stage):
    """A later build, with other settings, was broken off at this stage."""
    Database.open(folder)
    (folder / stage / "stage.json").unlink()
    with pytest.raises(ValueError, match=f"{stage} is not what .* broken off"):
        Database.open(folder)


def test_another_embedder(folder, toy_embedder):
    assert Database.open(folder).embedder.width == ToyEmbedder.width
    change_manifest(folder, embedder_fingerprint="0123456789abcdef")
    with pytest.raises(ValueError, match="'toy' has fingerprint 70e.*0123456789abcdef"):
        _ = Database.open(folder).embedder


def test_manifest_counts_what_is_there(tiny_database):
    manifest = tiny_database.manifest
    for split in ("train", "validation", "test"):
        assert (
            manifest["chunks"][split] == len(tiny_database.snapshot.chunks(split)) > 0
        )
        facts = manifest["documents"][split]
        table = tiny_database.snapshot.documents(split)
        assert facts["documents"] == table.num_rows
        assert facts["size_bytes"] == sum(table.column("size_bytes").to_pylist())
    assert manifest["vocab_size"] == tiny_database.tokenizer.vocab_size
    assert manifest["index"]["recall@2"] == 1.0
