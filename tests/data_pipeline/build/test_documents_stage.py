"""A corpus that is read by parts is the corpus that is read in one piece."""

import json
import tracemalloc

import pyarrow.parquet as pq
import pytest

from data_pipeline.build import documents_stage
from data_pipeline.build.pipeline import STEPS, Build
from data_pipeline.storage.files import read_json
from data_pipeline.text import corpora
from data_pipeline.text.copies.deduplicate import Signer
from data_pipeline.text.documents import Skipped
from tests import tiny_corpus

pytestmark = pytest.mark.usefixtures("toy_embedder")


def write(folder, files: dict[str, str | bytes]) -> str:
    folder.mkdir()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(folder)


def lines(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture
def mixed(tmp_path):
    """Files of several kinds; ids recur from folder to folder, and some can't be used."""
    files: dict[str, str | bytes] = {
        f"{folder}/part.jsonl": lines(f"one of {folder}", f"two of {folder}", "")
        for folder in "abc"
    }
    files |= {f"b/{n}.txt": f"text number {n}" for n in range(20)}
    files |= {f"{folder}/bad.txt": b"\xff\xfe\xff" for folder in "abcdefgh"}
    files["a/same.jsonl"] = json.dumps({"id": "part:1#2", "text": "its id was given"})
    return write(tmp_path / "corpus", files)


def kept(corpus, folder, **changes):
    """Documents of all splits as (id, text, uri), and the facts, as a build leaves them."""
    changes = {"validation_share": 0.2, "test_share": 0.2} | changes
    cfg = tiny_corpus.config(corpus, **changes)
    Build(cfg, folder).run("documents")
    made = folder / "documents" / "all"
    rows = [
        row
        for path in sorted(made.glob("*.parquet"))
        for row in pq.read_table(path, columns=["id", "text", "uri"]).to_pylist()
    ]
    return rows, read_json(made / "facts.json")


@pytest.mark.parametrize("part_bytes", [1, 60, 10**9])
def test_parts_are_the_whole(mixed, part_bytes, tmp_path):
    whole_skipped, skipped = Skipped(), Skipped()
    whole = list(corpora.read_documents(mixed, whole_skipped))
    parts = corpora.parts(mixed, skipped, part_bytes)
    assert (len(parts) == 1) == (part_bytes == 10**9)
    assert (len(parts) > 30) == (part_bytes == 1)
    read = []
    for part in parts:
        of_part = Skipped()
        read += corpora.read_part(mixed, part, of_part)
        skipped.include(of_part.as_dict())
    ids = corpora.unique_ids(document.id for document in read)
    assert ids == [document.id for document in whole]
    assert [document.text for document in read] == [d.text for d in whole]
    assert skipped.as_dict() == whole_skipped.as_dict()
    assert skipped.as_dict()["undecodable"]["count"] == 8


def test_a_build_by_parts_is_one_in_one_piece(mixed, tmp_path, monkeypatch):
    by_parts = kept(mixed, tmp_path / "parts", shard_size_bytes=50)
    assert len(list((tmp_path / "parts" / "documents" / "all").iterdir())) > 5
    parts = corpora.parts
    monkeypatch.setattr(corpora, "parts", lambda c, s, _: parts(c, s, 10**9))
    assert kept(mixed, tmp_path / "piece", shard_size_bytes=50) == by_parts
    monkeypatch.undo()
    rows, facts = by_parts
    ids = [row["id"] for row in rows]
    assert {"part:1", "part:1#2", "part:1#3", "part:1#4"} <= set(ids)
    assert len(set(ids)) == len(ids) == sum(facts[s]["documents"] for s in _SPLITS)
    for folder in STEPS["documents"]:
        assert not (tmp_path / "parts" / folder).exists()


_SPLITS = ("train", "validation", "test")


def test_parts_that_were_read_are_not_read_again(mixed, tmp_path, monkeypatch):
    expected = kept(mixed, tmp_path / "straight", shard_size_bytes=50)
    read_part, read = corpora.read_part, []

    def breaking(corpus, part, *rest):
        if len(read) == 5:
            raise KeyboardInterrupt
        read.append(part)
        return read_part(corpus, part, *rest)

    monkeypatch.setattr(corpora, "read_part", breaking)
    with pytest.raises(KeyboardInterrupt):
        kept(mixed, tmp_path / "broken", shard_size_bytes=50)
    first, read[:] = [*read], []
    monkeypatch.setattr(
        corpora, "read_part", lambda c, p, *r: read.append(p) or read_part(c, p, *r)
    )
    assert kept(mixed, tmp_path / "broken", shard_size_bytes=50) == expected
    assert read
    assert not set(first) & set(read)


def test_a_corpus_that_another_machine_does_not_have(mixed, tmp_path):
    (part, *_) = corpora.parts(mixed, Skipped(), 50)
    with pytest.raises(FileNotFoundError, match="not there on a machine.*absolute"):
        corpora.read_part(str(tmp_path / "elsewhere"), part, Skipped())


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [([], []), ([9], [1]), ([4, 6, 9, 1], [2, 2]), ([10, 10, 3], [1, 1, 1])],
)
def test_tables_end_with_the_document_that_fills_them(sizes, wanted):
    found = list(documents_stage._rows_of_tables(sizes, 10))
    assert [len(rows) for rows in found] == wanted
    assert [row for rows in found for row in rows] == list(range(len(sizes)))


def test_no_text_stays_in_memory(tmp_path):
    """Though nearly all are near copies, which are read again to be sure."""
    num_documents, text_bytes = 100, 100_000
    shared = " ".join(f"word{number % 400}" for number in range(text_bytes // 8))
    files = {f"{n:03}.txt": f"{n} {shared}" for n in range(num_documents)}
    corpus = write(tmp_path / "corpus", files)
    cfg = tiny_corpus.config(corpus, shard_size_bytes=10 * text_bytes)
    folder = tmp_path / "database"
    Signer()("")  # imports a library, whose memory is not meant
    tracemalloc.start()
    with pytest.raises(ValueError, match="no training document is left"):
        Build(cfg, folder).run("documents")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < num_documents * text_bytes / 3
