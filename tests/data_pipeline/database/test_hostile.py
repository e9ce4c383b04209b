"""A folder that somebody made to do harm: refused by name, nothing run, read or removed.

Every record here has right checksums: they are against accident, and no secret.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.database import Database, versions
from data_pipeline.sequences.batches import Sequences
from data_pipeline.storage.files import (
    describe_files,
    fingerprint,
    read_json,
    sha256_of,
    write_json,
    write_sealed,
)
from tests.changed_database import NEWS

pytestmark = pytest.mark.usefixtures("toy_embedder")


@pytest.fixture
def thesis(folder) -> Path:
    """Somebody's work beside the database."""
    path = folder.parent / "thesis"
    path.mkdir()
    (path / "chapter").write_text("years of work")
    return path


@pytest.fixture
def changed(database) -> Path:
    """A database with a version."""
    database.add([{"id": "news", "text": NEWS}])
    return database.folder


def seal_stage(stage: Path) -> None:
    """Makes the record of a stage agree with its files, and the manifest with it."""
    record = stage / "stage.json"
    made = json.loads(record.read_text())
    for shard in made["files"]:
        files = describe_files(stage / shard)
        made["files"][shard] = {n: e for n, e in files.items() if n != "shard.json"}
        write_json(stage / shard / "shard.json", made["files"][shard])
    reseal_record(stage, made)


def reseal_record(stage: Path, made: dict) -> None:
    made["contents"] = fingerprint(made["files"])
    named = ("settings", "inputs", "shards")
    made["fingerprint"] = fingerprint({name: made[name] for name in named})
    write_json(stage / "stage.json", made)
    path = stage.parent / "manifest.json"
    manifest = read_json(path) or {}
    manifest.pop("checksum")
    if stage.name in manifest["contents"]:
        manifest["contents"][stage.name] = made["contents"]
    write_sealed(path, manifest)


def all_ways_in(folder: Path):
    """Opens, searches and changes; what each raised."""
    for way in (
        lambda: Database.open(folder).search(["a"], 3),
        lambda: Database.open(folder).add([{"text": "more " + NEWS}]),
        lambda: Database.open(folder).compact(),
        lambda: versions.put_in_force(folder, 0),
    ):
        try:
            way()
        except (ValueError, OSError) as error:
            yield str(error)
        else:
            yield ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("replaced", {"../thesis": "compacted/000001/x-00000"}),
        ("replaced", {"{thesis}": "compacted/000001/x-00000"}),
        ("replaced", {"chunks/../../thesis": "compacted/000001/x-00000"}),
        ("replaced", {"documents": "compacted/000001/x-00000"}),
        ("replaced", {"chunks/train-00000": "../thesis"}),
        ("replaced", {"chunks/train-00000": "compacted/../../thesis"}),
        ("replaced", {"chunks/train-00000": "{thesis}"}),
        ("replaced", {"chunks/train-00000": None}),
        ("replaced", ["chunks/train-00000"]),
        ("deltas", ["../../thesis"]),
        ("deltas", ["{thesis}"]),
        ("deltas", [".."]),
        ("deltas", [""]),
        ("deltas", [1]),
        ("deltas", "000001"),
        ("contents", {"../thesis": "0" * 16}),
        ("held_out", {"../thesis": [1]}),
        ("held_out", {"test": ["1"]}),
        ("held_out", {"test": 1}),
    ],
)
def test_a_version_names_nothing_outside(changed, thesis, field, value):
    path = changed / "versions" / "000001.json"
    facts = read_json(path) or {}
    facts.pop("checksum")
    facts[field] = json.loads(json.dumps(value).replace("{thesis}", str(thesis)))
    write_sealed(path, facts)
    write_sealed(changed / "versions" / "oldest.json", {"version": 1})
    said = list(all_ways_in(changed))
    assert all("000001.json is damaged" in text for text in said[:3]), said
    assert (thesis / "chapter").read_text() == "years of work"
    assert (changed / "documents" / "all").is_dir()


@pytest.mark.parametrize("rows", [[[1]], [-1.5], [5, 3], [3, 3]])
def test_deleted_rows_are_rows(changed, rows):
    path = changed / "versions" / "000001.npy"
    np.save(path, np.array(rows))
    record = path.with_suffix(".json")
    facts = read_json(record) or {}
    facts.pop("checksum")
    write_sealed(record, {**facts, "deleted_sha256": sha256_of(path)})
    with pytest.raises(ValueError, match=r"000001\.npy is damaged"):
        Database.open(changed)


@pytest.mark.parametrize(
    "names",
    [
        {"shards": ["../thesis"]},
        {"files": {"../thesis": {}}},
        {"files": {"all": {"../../thesis/chapter": {"size_bytes": 1, "sha256": ""}}}},
        {"files": {"all": {"a": {"size_bytes": "1", "sha256": ""}}}},
        {"files": []},
        {"shards": {"all": 1}},
        {"shards": [3]},
    ],
)
@pytest.mark.parametrize("stage", ["documents", "index"])
def test_a_stage_names_nothing_outside(folder, stage, names):
    made = read_json(folder / stage / "stage.json") or {}
    reseal_record(folder / stage, made | names)
    with pytest.raises(ValueError, match=rf"{stage}/stage\.json is damaged"):
        Database.open(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"contents": {"../thesis": "a"}},
        {"contents": {}},
        {"contents": None},
        {"chunk_len": 10**12},
        {"chunk_len": -8},
        {"chunk_len": "8"},
        {"embedding_width": 2.5},
        {"embedding_width": 10**15},
        {"embedder": ["minilm"]},
        {"settings": None},
    ],
)
def test_a_manifest_has_its_form(folder, change):
    path = folder / "manifest.json"
    manifest = read_json(path) or {}
    manifest.pop("checksum")
    write_sealed(path, {**manifest, **change})
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        Database.open(folder)


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "chunks/stage.json",
        "versions/000001.json",
        "versions/oldest.json",
    ],
)
@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "3", "null", '"a"', "NaN"])
def test_json_of_any_form(changed, name, content):
    (changed / name).write_text(content)
    with pytest.raises(ValueError, match=Path(name).stem):
        Database.open(changed).add([{"text": "more " + NEWS}])


@pytest.mark.parametrize(
    "name",
    [
        "documents",
        "chunks/train-00000",
        "index/00000/ids.npy",
        "versions",
        "deltas/000001",
        "manifest.json",
        ".writer",
        ".builder",
        "costs.jsonl",
        "dataset/all/retro/1.0.0/features.json",
    ],
)
def test_links_that_lead_out_are_refused_before_anything_else(changed, thesis, name):
    path = changed / name
    target = thesis / path.name
    if path.exists():
        shutil.move(path, target)  # with all that it needs to be believed
    else:
        target.write_text("years of work")
    path.symlink_to(target)
    before = {p: p.read_bytes() for p in thesis.rglob("*") if p.is_file()}
    said = list(all_ways_in(changed))
    assert all("is a link out of" in text for text in said), said
    assert before == {p: p.read_bytes() for p in thesis.rglob("*") if p.is_file()}


def header(shape: str, descr: str = "<i8") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00v\x00" + text.encode().ljust(117) + b"\n" + bytes(64)


@pytest.mark.parametrize(
    ("stage", "name", "content"),
    [
        ("index", "ids.npy", np.array([10**15])),
        ("index", "ids.npy", np.array([-1])),
        ("index", "ids.npy", header("(10**15,)")),
        ("index", "ids.npy", header("(1000000000000000,)")),
        ("index", "ids.npy", header("(8,)", "|O")),
        ("index", "index/vectors.npy", np.full((3, 32), np.nan, np.float32)),
        ("index", "index/vectors.npy", np.full((3, 32), np.inf, np.float32)),
        ("index", "index/vectors.npy", np.zeros((3, 32), np.float32)),
        ("index", "index/vectors.npy", np.ones((3, 7), np.float32)),
        ("chunks", "tokens.npy", np.zeros((3, 7), np.uint16)),
        ("chunks", "tokens.npy", np.zeros((3, 8), np.float32)),
        ("chunks", "lengths.npy", -5),
        ("chunks", "lengths.npy", 2**30),
        ("chunks", "documents.npy", -5),
        ("chunks", "documents.npy", 2**40),
        ("chunks", "offsets.npy", np.zeros(3)),
    ],
)
def test_arrays_are_what_they_must_be(folder, stage, name, content):
    shard = next((folder / stage).glob("train-*" if stage == "chunks" else "0*"))
    path = shard / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, int):
        np.save(path, np.full_like(np.load(path), content))
    else:
        np.save(path, content)
    meta = shard / "index" / "meta.json"
    if meta.exists():
        facts = read_json(meta) or {}
        facts["file_sizes_bytes"]["vectors.npy"] = (
            (shard / "index/vectors.npy").stat().st_size
        )
        write_json(meta, facts)
    seal_stage(folder / stage)
    with pytest.raises(ValueError, match=r"\.npy"):
        Database.open(folder).search(["a"], 3)


def test_tokens_that_are_none_are_refused(folder):
    path = next((folder / "chunks").glob("train-*")) / "tokens.npy"
    np.save(path, np.full_like(np.load(path), 60_000))
    seal_stage(folder / "chunks")
    with pytest.raises(ValueError, match="token ids 60000"):
        Database.open(folder).search(["a"], 300)


@pytest.fixture
def payload(tmp_path, monkeypatch):
    """A module that an attacker could have the reader import; whether it was."""
    (tmp_path / "payload_of_a_stranger.py").write_text(
        "import pathlib\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class X: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "ran"
    sys.modules.pop("payload_of_a_stranger", None)


@pytest.mark.parametrize(
    "feature",
    [
        {
            "pythonClassName": "payload_of_a_stranger.X",
            "featuresDict": {"features": {}},
        },
        {"python_class_name": "payload_of_a_stranger.X", "tensor": {}},
        {"type": "payload_of_a_stranger.X", "content": {}},
        {"pythonClassName": "payload_of_a_stranger.X", "jsonFeature": {"json": "{}"}},
        {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict."
            "FeaturesDict",
            "featuresDict": {
                "features": {
                    "a": {"pythonClassName": "payload_of_a_stranger.X", "tensor": {}}
                }
            },
        },
        {
            "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
            "tensor": {"shape": {"dimensions": ["99999999", "99999999"]}},
        },
        [],
    ],
)
def test_features_import_nothing(folder, payload, feature):
    place = folder / "dataset" / "all" / "retro" / "1.0.0"
    write_json(place / "features.json", feature)
    seal_stage(folder / "dataset")
    with pytest.raises(ValueError, match=r"features\.json is damaged"):
        Sequences(folder / "dataset" / "all", "train")
    assert not payload.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"moduleName": "payload_of_a_stranger"},
        {"module_name": "payload_of_a_stranger"},
        {
            "template": "../../../../../thesis/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        },
        {"template": "/etc/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"},
    ],
)
def test_a_dataset_names_nothing_outside(folder, payload, change):
    path = folder / "dataset" / "all" / "retro" / "1.0.0" / "dataset_info.json"
    info = read_json(path) or {}
    template = change.pop("template", None)
    for split in info["splits"] if template else ():
        split["filepathTemplate"] = template
    write_json(path, info | change)
    seal_stage(folder / "dataset")
    with pytest.raises(ValueError, match=r"dataset_info|lie elsewhere|1\.0\.0"):
        Sequences(folder / "dataset" / "all", "train")
    assert not payload.exists()
