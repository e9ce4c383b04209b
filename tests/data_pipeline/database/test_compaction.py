"""Compacting finds the same, and leaves no deleted text on the disk."""

import numpy as np
import pyarrow.parquet
import pytest

from data_pipeline.build import pipeline
from data_pipeline.database import Database, verify, versions
from data_pipeline.sequences.batches import Sequences
from data_pipeline.text.copies.deduplicate import SPLITS
from tests import tiny_corpus
from tests.changed_database import NEWS, OTHER_NEWS, found_in, opening

pytestmark = pytest.mark.usefixtures("toy_embedder")


def everything_on_disk(folder) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


def test_compacting_finds_the_same_and_leaves_no_deleted_text(database):
    document = found_in(database, tiny_corpus.PLANTED, 1)[0]
    database.add([{"id": "news", "text": NEWS}, {"id": "kept", "text": OTHER_NEWS}])
    database.add([{"id": "more", "text": "A third text. " + OTHER_NEWS}])
    database.delete([document, "news"])
    query = [NEWS, OTHER_NEWS, tiny_corpus.PLANTED, "the same again"]

    def sources(opened):
        found = opened.search(query, 200)
        return [[(f.document_id, f.offset, f.distance) for f in row] for row in found]

    before = sources(database)
    number = database.compact()
    assert database.version == number == 4
    assert sources(database) == before == sources(Database.open(database.folder))
    assert b"umbrellas" not in everything_on_disk(database.folder / "chunks")
    for table in database.folder.rglob("*.parquet"):
        text = str(pyarrow.parquet.read_table(table).to_pydict())
        assert "umbrellas" not in text
        assert "tortoises" not in text
    names = {path.name for path in (database.folder / "deltas").iterdir()}
    assert names == {"000004"}
    assert versions.numbers(database.folder) == [4]
    assert not (database.folder / "dataset").exists()
    with pytest.raises(ValueError, match="has no version 0"):
        Database.open(database.folder, version=0)
    assert database.compact() == 4  # nothing more to do
    database.add([{"id": "news", "text": NEWS}])
    assert found_in(database, opening(database, NEWS), 1) == ["news"]
    database.delete(["news", "kept", "more"])
    database.compact()
    assert not list((database.folder / "deltas").iterdir())
    assert not {"news", "kept", "more"} & set(found_in(database, NEWS, 10_000))


def test_compacting_what_was_never_changed(folder):
    assert Database.open(folder).compact() == 0
    assert Database.open(folder).version == 0


def decoded(folder) -> str:
    """All that the files of a database say: as they are, as tables, as tokens."""
    opened = Database.open(folder)
    decode = opened.tokenizer.decode
    parts = [everything_on_disk(folder).decode("latin-1")]
    parts += [
        str(pyarrow.parquet.read_table(path).to_pydict())
        for path in folder.rglob("*.parquet")
    ]
    for path in folder.rglob("tokens.npy"):
        parts.append(decode(np.load(path).reshape(-1)))
    for split in SPLITS if (folder / "dataset").exists() else ():
        for batch in Sequences(folder / "dataset" / "all", split).in_order(16):
            parts.append(decode(batch["inputs_BL"].reshape(-1)))
            parts += map(decode, batch["neighbours_BCNR"].reshape(-1, 16))
    return "\n".join(parts)


def only_in(texts: dict[str, str], document: str) -> str:
    """Twenty characters that no other document has."""
    own, others = texts[document], [t for name, t in texts.items() if name != document]
    pieces = (own[start : start + 20] for start in range(5, len(own) - 20))
    return next(piece for piece in pieces if not any(piece in text for text in others))


def test_nothing_of_any_split_is_left(folder, texts, tiny_corpus_folder):
    """Neither in what is searched nor in held-out text, nor in sequences made anew."""
    database = Database.open(folder)
    near_copies = {tiny_corpus.NEAR_COPY, "held-out"}
    chosen = {
        split: next(
            name
            for name in database.snapshot.documents(split).column("id").to_pylist()
            if name not in near_copies
        )
        for split in SPLITS
    }
    canaries = [only_in(texts, name) for name in chosen.values()]
    before = decoded(folder)
    assert all(canary in before for canary in canaries)
    vectors = [
        np.load(next((folder / "embeddings").glob(f"{split}-00000")) / "vectors.npy")[0]
        for split in SPLITS
    ]
    # Of a build that was broken off.
    (folder / "sequences").mkdir()
    (folder / "sequences" / "part").write_text(canaries[0])
    (folder / ".tmp-part").write_text(canaries[0])
    database.delete(chosen.values())
    with pytest.raises(ValueError, match="is not in"):
        database.delete([chosen["test"]])
    database.compact()
    for made_anew in (False, True):
        if made_anew:
            pipeline.Build(tiny_corpus.config(tiny_corpus_folder), folder).run()
        left = decoded(folder)
        for name, canary in zip(chosen.values(), canaries, strict=True):
            assert canary not in left
            assert f"'{name}'" not in left
        on_disk = everything_on_disk(folder)
        assert not any(vector.tobytes() in on_disk for vector in vectors)
        opened = Database.open(folder)
        assert [said for _, said in verify.files(opened.snapshot) if said] == []
    kept = opened.snapshot.documents("test").column("id").to_pylist()
    assert sum(map(bool, kept)) == len(kept) - 1  # and no other one is gone


def test_of_a_compacted_database_the_sequences_alone_are_made(
    folder, tiny_corpus_folder
):
    database = Database.open(folder)
    database.add([{"id": "news", "text": NEWS}])
    database.delete([tiny_corpus.PLANTED_IN])
    database.compact()
    with pytest.raises(ValueError, match="holds no dataset.*compacted"):
        Sequences(folder / "dataset" / "all", "train")
    cfg = tiny_corpus.config(tiny_corpus_folder, sequence_chunks=2)
    with tiny_corpus.recorded() as made:
        pipeline.Build(cfg, folder).run()
    assert {stage for stage, _ in made} == {"sequences", "dataset"}
    (folder / "dataset").rename(folder / "older")
    with tiny_corpus.recorded() as made:
        pipeline.Build(cfg, folder).run("neighbours")
    assert made == []
    (folder / "older").rename(folder / "dataset")
    decode = database.tokenizer.decode
    batches = Sequences(folder / "dataset" / "all", "train").in_order(64)
    trained = "".join(decode(batch["inputs_BL"].reshape(-1)) for batch in batches)
    assert NEWS in trained and tiny_corpus.PLANTED not in trained
    assert Database.open(folder).fingerprint == database.fingerprint
    with pytest.raises(ValueError, match="compacted: building here would bring back"):
        pipeline.Build(
            tiny_corpus.config(tiny_corpus_folder, chunk_len=16), folder
        ).run()
