"""A whole build: what is used again, what is made again, and what a kill leaves."""

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from data_pipeline.build import (
    engine,
    local_engine,
    pipeline,
    shard_work,
    stage_code,
)
from data_pipeline.build.pipeline import STAGES, STEPS, Build
from data_pipeline.database import Database, versions
from data_pipeline.embedding import embedder
from data_pipeline.sequences.batches import Sequences
from data_pipeline.service.client import RetrievalClient
from data_pipeline.storage import costs
from data_pipeline.storage.files import read_json
from data_pipeline.text import corpora
from data_pipeline.text.copies.deduplicate import digest, split_of
from data_pipeline.text.tokenizer import Tokenizer
from tests import fast_tokenizers, served, tiny_corpus

_STEPS = {step for steps in STEPS.values() for step in steps}

pytestmark = pytest.mark.usefixtures("toy_embedder")


@pytest.fixture
def copy(tiny_database, tmp_path):
    return shutil.copytree(tiny_database.folder, tmp_path / "database")


def built(folder, corpus, last_stage=STAGES[-1], **changes):
    """Names of the stages of which a shard was made."""
    with tiny_corpus.recorded() as made:
        Build(tiny_corpus.config(corpus, **changes), folder).run(last_stage)
    return {stage for stage, _ in made} - _STEPS


def test_a_build_is_whole(tiny_database):
    names = {path.name for path in tiny_database.folder.iterdir()}
    assert names == {*STAGES, "manifest.json", costs.FILE, ".builder"}
    recorded = {cost.stage for cost in costs.read(tiny_database.folder)}
    assert recorded == {*STAGES, *_STEPS}
    assert len(tiny_database.snapshot.paths.shards("chunks", "train")) > 2
    for split in ("validation", "test"):
        assert tiny_database.snapshot.documents(split).num_rows > 2
    # Measured, so in the manifest, but no part of the contents, which two builds share.
    assert tiny_database.manifest["index"]["queries_per_s"] > 0
    facts = read_json(tiny_database.folder / "index" / "00000" / "facts.json")
    assert set(facts) == {"kind", "rows", "queries", "recall@2", "recall@10"}
    hidden = list(tiny_database.folder.rglob(".*"))
    assert hidden == [tiny_database.folder / ".builder"]  # a lock


def test_a_second_build_makes_nothing(copy, tiny_corpus_folder, capsys):
    before = tiny_corpus.contents(copy)
    assert built(copy, tiny_corpus_folder) == set()
    assert tiny_corpus.contents(copy) == before
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{stage}: up to date" for stage in STAGES]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (
            {"chunk_len": 16, "neighbour_len": 32},
            {"chunks", "embeddings", "index", "neighbours", "dataset"},
        ),
        ({"candidates": 4}, {"neighbours", "dataset"}),
        ({"seed": 1}, {"dataset"}),
        ({"num_neighbours": 1}, {"dataset"}),
        ({"recall_target": 0.5}, {"index"}),  # an exact index stays as it is
    ],
)
def test_a_change_makes_what_depends_on_it(copy, tiny_corpus_folder, changes, wanted):
    assert built(copy, tiny_corpus_folder, **changes) == wanted
    assert built(copy, tiny_corpus_folder, **changes) == set()
    database = Database.open(copy)
    assert database.chunk_len == changes.get("chunk_len", 8)
    metadata = Sequences(copy / "dataset" / "all", "train").metadata
    for name, value in changes.items():
        assert metadata["data"].get(name, value) == value


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"vocab_size": 350}, set(STAGES[1:-1])),
        ({"shard_size_bytes": 9000}, set(STAGES[:-1]) - {"tokenizer"}),
    ],
)
def test_changes_at_the_front(copy, tiny_corpus_folder, changes, wanted):
    made = built(copy, tiny_corpus_folder, "neighbours", **changes)
    # The tokenizer is trained on the same texts, but that its input differs is all
    # that is known before.
    assert made - {"tokenizer"} == wanted - {"tokenizer"}
    Database.open(copy)


def test_a_corpus_that_changed_is_read_again(tmp_path):
    corpus = Path(tiny_corpus.write(tmp_path / "corpus"))
    folder = tmp_path / "database"
    assert built(folder, str(corpus), "chunks") == {"documents", "tokenizer", "chunks"}
    # Touched only: read again, found to be the same.
    os.utime(corpus / "corpus-1.jsonl", ns=(1, 1))
    assert built(folder, str(corpus), "chunks") == {"documents"}
    (corpus / "more.txt").write_text("One more document with a text of its own.")
    made = built(folder, str(corpus), "chunks")
    assert made == {"documents", "tokenizer", "chunks"}
    (corpus / "more.txt").unlink()
    assert "documents" in built(folder, str(corpus), "chunks")


def test_an_index_of_another_code_number_is_made_again(
    copy, tiny_corpus_folder, monkeypatch
):
    number, work = stage_code._STAGES["index"]
    monkeypatch.setitem(stage_code._STAGES, "index", (number + 1, work))
    assert built(copy, tiny_corpus_folder) == {"index"}  # exact: it is the same


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        ("kept", {"documents"}),
        ("searches", {"neighbours"}),
        ("sequences", {"dataset"}),
    ],
)
def test_a_stage_is_made_again_when_the_code_of_a_step_changes(
    copy, tiny_corpus_folder, monkeypatch, step, wanted
):
    number, work = stage_code._STAGES[step]
    monkeypatch.setitem(stage_code._STAGES, step, (number + 1, work))
    assert built(copy, tiny_corpus_folder) == wanted


def test_changed_code_is_refused_where_versions_stand_on_it(
    copy, tiny_corpus_folder, monkeypatch
):
    opened = Database.open(copy)
    opened.add([{"id": "news", "text": "Nine violet tortoises rehearsed."}])
    number, work = stage_code._STAGES["chunks"]
    monkeypatch.setitem(stage_code._STAGES, "chunks", (number + 1, work))
    with pytest.raises(ValueError, match="stand on chunks that this code would make"):
        built(copy, tiny_corpus_folder)
    assert Database.open(copy).version == opened.version


def test_shards_of_the_index_find_what_one_index_finds(copy, tiny_corpus_folder):
    one = Database.open(copy)
    expected = [tiny_corpus.neighbour_ids(one, split) for split in ("train", "test")]
    made = built(copy, tiny_corpus_folder, index_shard_rows=300)
    assert made == {"index", "neighbours"}  # which are the same: no new dataset
    several = Database.open(copy)
    assert len(several.snapshot.index().shards) > 2
    assert several.manifest["index"]["shards"] == len(several.snapshot.index().shards)
    for split, ids_TN in zip(("train", "test"), expected, strict=True):
        found = tiny_corpus.neighbour_ids(several, split)
        assert (found == ids_TN).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedder": "./no_such_folder"}, "no embedder folder './no_such_folder'"),
        ({"tokenizer": "none.model"}, "none.model"),
    ],
)
def test_models_that_are_not_there_are_refused_before_anything_is_read(
    tiny_corpus_folder, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(shard_work, "check_embedder", embedder.check_embedder)
    cfg = tiny_corpus.config(tiny_corpus_folder, **changes)
    with pytest.raises(OSError, match=message):
        Build(cfg, tmp_path / "database").run()
    assert not (tmp_path / "database").exists()


def test_what_takes_long_to_import_is_no_part_of_the_first_shard(
    copy, tiny_corpus_folder, monkeypatch
):
    order = []
    importer = types.SimpleNamespace(import_module=order.append)
    monkeypatch.setattr(pipeline, "importlib", importer)
    stage = pipeline.run_stage
    monkeypatch.setattr(
        pipeline, "run_stage", lambda *a, **k: order.append(a[0].name) or stage(*a, **k)
    )
    built(copy, tiny_corpus_folder, seed=1)
    assert order[order.index("tensorflow") + 1 :] == ["sequences", "dataset"]


def test_one_build_at_a_time(copy, tiny_corpus_folder):
    with (
        versions.sole_builder(copy),
        pytest.raises(ValueError, match="another process is building"),
    ):
        built(copy, tiny_corpus_folder)


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"vocab_size": 350}, "tokenizer"),
        ({"shard_size_bytes": 9000}, "documents"),
        ({"chunk_len": 16, "neighbour_len": 32}, "chunks"),
    ],
)
def test_what_versions_stand_on_is_not_made_otherwise(
    copy, tiny_corpus_folder, changes, stage
):
    """Refused before a byte is lost: the versions go on."""
    opened = Database.open(copy)
    opened.add([{"id": "news", "text": "Nine violet tortoises rehearsed."}])
    before = opened.search(["violet tortoises"], 3)
    with pytest.raises(ValueError, match=f"its versions stand on {stage}"):
        built(copy, tiny_corpus_folder, **changes)
    assert Database.open(copy).search(["violet tortoises"], 3) == before
    # What is lost of the same build is made again.
    shutil.rmtree(next((copy / "embeddings").glob("train-*")))
    built(copy, tiny_corpus_folder)
    assert Database.open(copy).search(["violet tortoises"], 3) == before


def test_corpus_identity(tmp_path):
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "b.txt"
    file.write_text("text")
    corpus_identity = corpora.identity
    identity = corpus_identity(str(tmp_path))
    assert identity == corpus_identity(str(tmp_path))
    assert identity != corpus_identity(str(file)) == corpus_identity(str(file))
    file.rename(tmp_path / "a" / "c.txt")
    assert identity != corpus_identity(str(tmp_path))
    assert corpus_identity("tfds:x") != corpus_identity("tfds:y")
    assert corpus_identity("") == corpus_identity("python")


@pytest.mark.parametrize("text", [None, " \n", b"\xff\xfe\x00"])
def test_a_corpus_without_text(tmp_path, text):
    corpus, folder = tmp_path / "corpus", tmp_path / "database"
    corpus.mkdir()
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode()
        (corpus / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match="no usable text"):
        Build(tiny_corpus.config(str(corpus)), folder).run()
    assert not (folder / "manifest.json").exists()
    assert not (folder / "documents" / "stage.json").exists()
    with pytest.raises(ValueError, match="no finished database"):
        Database.open(folder)


def test_nothing_left_to_train_on(tmp_path):
    texts = {
        name: text
        for name, text in tiny_corpus.texts().items()
        if split_of(digest(text), 0.1, 0.15) == "test"
    }
    corpus = tiny_corpus.write(tmp_path / "corpus", texts)
    with pytest.raises(ValueError, match="no training document is left"):
        Build(tiny_corpus.config(corpus), tmp_path / "database").run()
    assert not (tmp_path / "database" / "manifest.json").exists()


def test_no_held_out_documents(tmp_path, tiny_corpus_folder):
    folder = tmp_path / "database"
    built(folder, tiny_corpus_folder, validation_share=0.0, test_share=0.0)
    database = Database.open(folder)
    assert database.snapshot.documents().num_rows == len(tiny_corpus.texts())
    assert len(database.snapshot.chunks("validation")) == 0
    assert len(Sequences(folder / "dataset" / "all", "train"))
    with pytest.raises(ValueError, match="the test split of .* has no sequence"):
        Sequences(folder / "dataset" / "all", "test")
    # Nor do they have neighbours that an update could change.
    database.add([{"id": "added", "text": "A text that was added later. " * 40}])
    again = built(folder, tiny_corpus_folder, validation_share=0.0, test_share=0.0)
    assert again == {"dataset"}
    sequences = Sequences(folder / "dataset" / "all", "train")
    assert sequences.metadata["database"] == database.fingerprint


def test_less_text_than_a_sequence(tmp_path):
    corpus = tiny_corpus.write(tmp_path / "corpus", {"a": "one short text"})
    changes = {"validation_share": 0.0, "test_share": 0.0, "sequence_chunks": 99}
    with pytest.raises(ValueError, match=r"chunks, less than data\.sequence_chunks=99"):
        built(tmp_path / "database", corpus, **changes)


def test_held_out_documents_are_in_no_training_chunk(tiny_database):
    texts, seen = tiny_corpus.texts(), {}
    for split in ("train", "validation", "test"):
        rows = set(tiny_database.snapshot.chunks(split).column("documents").tolist())
        ids = tiny_database.snapshot.documents(split).column("id").to_pylist()
        assert rows == set(range(len(ids)))
        for name in ids:
            assert split_of(digest(texts[name]), 0.1, 0.15) == split
            assert seen.setdefault(name, split) == split
    assert set(texts) - set(seen) == {tiny_corpus.NEAR_COPY}


def test_a_near_copy_of_a_held_out_document_is_dropped(tiny_database):
    texts = tiny_corpus.texts()
    assert split_of(digest(texts[tiny_corpus.NEAR_COPY]), 0.1, 0.15) == "train"
    assert (
        "held-out" in tiny_database.snapshot.documents("test").column("id").to_pylist()
    )
    names = tiny_database.snapshot.documents().column("id").to_pylist()
    assert tiny_corpus.NEAR_COPY not in names
    assert tiny_database.manifest["documents"]["near_duplicates"] == 1


def test_a_tokenizer_that_was_given(tmp_path, tiny_corpus_folder, tiny_database):
    model = tiny_database.folder / "tokenizer" / "all" / "tokenizer.model"
    folder = tmp_path / "database"
    made = built(folder, tiny_corpus_folder, "chunks", tokenizer=str(model))
    assert made == {"documents", "tokenizer", "chunks"}
    copied = folder / "tokenizer" / "all" / "tokenizer.model"
    assert copied.read_bytes() == model.read_bytes()
    damaged = tmp_path / "damaged.model"
    damaged.write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"damaged\.model"):
        built(folder, tiny_corpus_folder, "chunks", tokenizer=str(damaged))


def test_mistakes_are_named(tmp_path, tiny_corpus_folder):
    cfg = tiny_corpus.config(tiny_corpus_folder)
    with pytest.raises(ValueError, match="no stage 'chunk'; there are documents"):
        Build(cfg, tmp_path / "database").run("chunk")
    assert not (tmp_path / "database").exists()
    bad = tiny_corpus.config(tiny_corpus_folder, neighbour_len=12)
    with pytest.raises(ValueError, match=r"data\.neighbour_len 12"):
        Build(bad, tmp_path / "database")
    bad = tiny_corpus.config(tiny_corpus_folder, index="faiss")
    with pytest.raises(ValueError, match=r"data\.index must be .*faiss-flat.*'faiss'"):
        Build(bad, tmp_path / "database")


@pytest.mark.parametrize("stage", ["chunks", "embeddings", "index"])
def test_a_rebuild_that_breaks_off_leaves_no_database(
    copy, tiny_corpus_folder, monkeypatch, stage
):
    """Its manifest is still the old one, but its files are not."""

    class Killed(BaseException):
        pass

    def killing(work, folder, shard):
        if folder.name == stage:
            raise Killed
        return make_shard(work, folder, shard)

    make_shard = engine.make_shard
    monkeypatch.setattr(local_engine, "make_shard", killing)
    changes = {"chunk_len": 16, "neighbour_len": 32}
    with pytest.raises(Killed):
        built(copy, tiny_corpus_folder, **changes)
    with pytest.raises(ValueError, match="a build was broken off, start it again"):
        Database.open(copy)
    monkeypatch.undo()
    built_again = built(copy, tiny_corpus_folder, "neighbours", **changes)
    assert stage in built_again
    assert Database.open(copy).chunk_len == 16


def test_killed_twelve_times(tiny_database, tiny_corpus_folder, tmp_path):
    """kill -9 at random moments; what comes out is what an undisturbed build makes."""
    folder = tmp_path / "database"
    command = [sys.executable, "-m", "tests.killed_build"]
    command += [tiny_corpus_folder, str(folder), "0", "12", "1.0"]
    done = subprocess.run(
        command,
        cwd=Path(pipeline.__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("status 9\n") >= 6, done.stdout
    wanted = tiny_corpus.contents(tiny_database.folder)
    found = tiny_corpus.contents(folder)
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == []


def test_a_database_speaks_a_pretrained_decoders_tokens(tiny_corpus_folder, tmp_path):
    description = fast_tokenizers.byte_level()
    given = fast_tokenizers.folder(tmp_path / "decoder", description)
    folder, tokenizer = tmp_path / "database", Tokenizer.load(given)
    built(folder, tiny_corpus_folder, tokenizer=str(given))
    shutil.rmtree(given)  # what is built stands by itself
    database = Database.open(folder)
    assert database.manifest["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert tokenizer.fingerprint == database.tokenizer.fingerprint
    odd = "<|endoftext|> caf\u00e9 \4 <|im_start|>system e\u0301\r\n" * 9
    database.add([{"id": "new", "text": odd}])
    texts = {"new": odd, tiny_corpus.PLANTED_IN: tiny_corpus.texts()["planted"]}
    with served.servers() as running:
        shard = running.shard(database, 0, 1)
        router = running.router(database, shard.address)
        with RetrievalClient(f"grpc://{router.address}") as client:
            assert Tokenizer(client.tokenizer_model(), "it").model == tokenizer.model
            for name, text in texts.items():
                chunk = tokenizer.decode(tokenizer.encode(text)[: database.chunk_len])
                for holder in (database, client):
                    (found,) = holder.search([chunk], 1)
                    assert (found[0].document_id, found[0].text) == (name, chunk)
    database.delete(["new"])
    assert "new" not in {found.document_id for found in database.search([odd], 9)[0]}
