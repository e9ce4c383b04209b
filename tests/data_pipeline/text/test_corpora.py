"""What is usable is read as it is, what is not is counted by name, nothing aborts."""

import lzma
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.text.corpora import Document, Skipped, read_documents
from tests.corpus_files import read, write_jsonl

CORPORA = Path(
    os.environ.get("RETRO_CORPORA", Path(__file__).parents[4] / "shared/corpora")
)


def test_folder_is_read_sorted_with_every_reader(tmp_path: Path) -> None:
    (tmp_path / "b/deep").mkdir(parents=True)
    (tmp_path / "b/deep/page.md").write_text("# The title #\n\nBody", encoding="utf-8")
    (tmp_path / "b/guide.rst").write_text("Guide\n=====\n\nBody", encoding="utf-8")
    (tmp_path / "a.py").write_bytes(b"\xef\xbb\xbf# no title\r\nx = 1\r\n")
    (tmp_path / "c.odd").write_text("any suffix", encoding="utf-8")
    write_jsonl(tmp_path / "b/r.jsonl.xz", [{"text": "record", "id": 1}])
    pq.write_table(pa.table({"text": ["row"]}), tmp_path / "b/t.parquet")
    (tmp_path / "d.txt").write_bytes(b"\xef\xeb")
    (tmp_path / "e.bin").write_bytes(b"a\0b")
    (tmp_path / "f.txt").write_bytes(b" \n")
    (tmp_path / "g.parquet").write_bytes(b"no parquet")
    pq.write_table(pa.table({"prose": ["row"]}), tmp_path / "h.parquet")
    for hidden in (".git", "CVS", "__pycache__"):
        (tmp_path / hidden).mkdir()
        (tmp_path / hidden / "x.txt").write_text("hidden", encoding="utf-8")
    (tmp_path / ".hidden").write_text("hidden", encoding="utf-8")
    (tmp_path / "b/loop").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    documents, skipped = read(tmp_path)
    assert [(d.id, d.title, d.text) for d in documents] == [
        ("a.py", "a", "# no title\r\nx = 1\r\n"),
        ("b/deep/page.md", "The title", "# The title #\n\nBody"),
        ("b/guide.rst", "Guide", "Guide\n=====\n\nBody"),
        ("1", "", "record"),
        ("t:1", "", "row"),
        ("c.odd", "c.odd", "any suffix"),
    ]
    assert documents[1].uri == str(tmp_path / "b/deep/page.md")
    # The link to a folder is listed as a folder and not followed: it is no file.
    assert skipped == {
        "binary": 1,
        "damaged": 1,
        "empty": 1,
        "no text field": 1,
        "undecodable": 1,
        "unreadable": 1,
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_places_are_counted(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good", encoding="utf-8")
    (tmp_path / "shut.txt").write_text("shut", encoding="utf-8")
    (tmp_path / "shut.txt").chmod(0)
    (tmp_path / "shut").mkdir(mode=0)
    assert read(tmp_path)[1] == {"unreadable": 2}


def test_a_failing_disk_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scandir(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "bad":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    real = os.scandir
    (tmp_path / "bad").mkdir()
    (tmp_path / "good.txt").write_text("good", encoding="utf-8")
    monkeypatch.setattr(os, "scandir", scandir)
    documents, skipped = read(tmp_path)
    assert [document.id for document in documents] == ["good.txt"]
    assert skipped == {"unreadable": 1}


WIKITEXT = (
    " \n = One = \n \n Text = of one . \n \n = = Section = = \n \n More . \n \n"
    " = A = B = \n \n Second . \n = not a title = \n"
)


def test_wikitext_is_split_into_articles(tmp_path: Path) -> None:
    path = tmp_path / "wiki.txt"
    path.write_text(WIKITEXT, encoding="utf-8")
    documents, _ = read(path)
    assert [(d.id, d.title) for d in documents] == [
        ("wiki.txt:1", "One"),
        ("wiki.txt:2", "A = B"),
    ]
    assert "".join(document.text for document in documents) == WIKITEXT
    path.write_text("Prose first .\n" + WIKITEXT, encoding="utf-8")
    assert len(read(path)[0]) == 1


@pytest.mark.parametrize(
    ("file", "articles"),
    [
        ("wikitext2.train.txt.xz", 600),
        ("wikitext2.valid.txt.xz", 60),
        ("wikitext103.valid.txt.xz", 60),
    ],
)
def test_real_wikitext(file: str, articles: int) -> None:
    path = CORPORA / "wikitext-2" / file
    if not path.exists():
        pytest.skip("the shared corpora are absent")
    documents, skipped = read(path)
    assert (len(documents), skipped) == (articles, {})
    text = lzma.decompress(path.read_bytes()).decode()
    assert "".join(document.text for document in documents) == text


def test_size_limit_ends_the_stream(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "s.jsonl", [{"text": "\u00e9" * 5}] * 9)
    assert len(read(path, max_size_bytes=20)[0]) == 2
    assert len(read(path, max_size_bytes=21)[0]) == 3
    assert len(read(path)[0]) == 9
    with pytest.raises(ValueError, match="max_size_bytes=0"):
        read(path, max_size_bytes=0)


@pytest.mark.parametrize(
    ("corpus", "error", "says"),
    [
        ("nowhere/at/all", FileNotFoundError, "nowhere/at/all"),
        ("s3://bucket/x", ValueError, "unknown scheme 's3'"),
        ("film.mp4", ValueError, "film.mp4"),
        ("pipe.txt", ValueError, "unknown kind"),
        ("table.parquet.gz", ValueError, "unknown kind"),
    ],
)
def test_what_cannot_be_read_raises_at_once(
    corpus: str,
    error: type[Exception],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if corpus.startswith(("film", "table")):
        Path(corpus).write_bytes(b"")
    if corpus.startswith("pipe"):
        os.mkfifo(corpus)
    with pytest.raises(error, match=says) as raised:
        read_documents(corpus, Skipped())
    assert "accepted are" in str(raised.value)


def test_nothing_usable_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is empty"):
        read(tmp_path)
    (tmp_path / "x.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"1 undecodable: x\.txt"):
        read(tmp_path)


class FakeBuilder:
    """What `corpora` uses of a TFDS builder."""

    def __init__(self, features: dict[str, object]) -> None:
        self.info = types.SimpleNamespace(features=features, splits={"train": 1})

    def download_and_prepare(self) -> None:
        self.prepared = True

    def as_dataset(self, *, split: str, shuffle_files: bool) -> list[dict[str, object]]:
        assert self.prepared
        assert (split, shuffle_files) == ("train", False)
        return [{"text": b"caf\xc3\xa9", "id": np.int64(4)}, {"text": b"\xff"}]


def test_tfds(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("tensorflow_datasets")
    asked = []

    def builder(name: str, *, data_dir: str | None) -> FakeBuilder:
        asked.append((name, data_dir))
        dtype = np.int64 if "labels" in name else np.dtype(object)
        shape = (None,) if "lists" in name else ()
        feature = types.SimpleNamespace(np_dtype=dtype, shape=shape)
        return FakeBuilder({"text": feature})

    class DatasetNotFoundError(Exception):
        pass

    registered = types.SimpleNamespace(DatasetNotFoundError=DatasetNotFoundError)
    monkeypatch.setattr(fake, "builder", builder, raising=False)
    monkeypatch.setattr(fake, "as_numpy", iter, raising=False)
    core = types.SimpleNamespace(registered=registered)
    monkeypatch.setattr(fake, "core", core, raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    monkeypatch.setenv("TFDS_DATA_DIR", "/data")
    documents, skipped = read("tfds:wiki/en:1.0.0:train")
    assert documents == [
        Document("4", "caf\u00e9", "", "tfds:wiki/en:1.0.0:train"),
    ]
    assert skipped == {"undecodable": 1}
    assert asked == [("wiki/en:1.0.0", "/data")]
    with pytest.raises(ValueError, match="no split 'dev'"):
        read_documents("tfds:wiki:dev", Skipped())
    for unfit in ("tfds:labels", "tfds:lists"):
        with pytest.raises(ValueError, match=r"its features are \['text'\]"):
            read_documents(unfit, Skipped())


class FakeStream(list[dict[str, object]]):
    features = None


def test_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install -e .*\[hf\]"):
        read_documents("hf:user/name", Skipped())
    asked = []

    def load_dataset(
        path: str, config: str | None, *, split: str, streaming: bool
    ) -> FakeStream:
        asked.append((path, config, split, streaming))
        return FakeStream([{"text": "streamed", "title": "T"}])

    fake = types.ModuleType("datasets")
    monkeypatch.setattr(fake, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    documents, _ = read("hf:user/name,small:test")
    at = "user/name,small/test:0"
    expected = Document(at, "streamed", "T", "hf:user/name,small:test")
    assert documents == [expected]
    assert asked == [("user/name", "small", "test", True)]
