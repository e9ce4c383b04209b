"""Bytes and lines of one file, within the limit of a document."""

from pathlib import Path

import pytest

from data_pipeline.text.documents import Skipped
from data_pipeline.text.readers.compression import LeftOutError
from data_pipeline.text.readers.source_file import Reading, SourceFile
from tests.corpus_files import read


def source(tmp_path: Path, data: bytes, limit: int = 10) -> SourceFile:
    path = tmp_path / "f.txt"
    path.write_bytes(data)
    reading = Reading(max_document_bytes=limit)
    return SourceFile(path, "f.txt", "f", "", Skipped(), reading)


def test_lines_keep_their_newlines(tmp_path: Path) -> None:
    file = source(tmp_path, "a\u2028b\r\n\nlast".encode())
    assert list(file.lines()) == ["a\u2028b\r\n".encode(), b"\n", b"last"]
    assert list(source(tmp_path, b"").lines()) == []


def test_lines_beyond_the_limit(tmp_path: Path) -> None:
    data = b"short\n" + b"x" * 3_000_000 + b"\nshort\n" + b"x" * 1_500_000
    lines = list(source(tmp_path, data, 1_400_000).lines())
    assert lines == [b"short\n", None, b"short\n", None]


def test_data_beyond_the_limit(tmp_path: Path) -> None:
    assert source(tmp_path, b"0123456789").data() == b"0123456789"
    with pytest.raises(LeftOutError, match=r"data\.max_document_bytes"):
        source(tmp_path, b"0123456789a").data()
    with pytest.raises(LeftOutError, match="binary"):
        source(tmp_path, b"a\0").data()


def test_dumps_are_named_before_they_are_read(tmp_path: Path) -> None:
    """A user who is told of the limit raises it in vain."""
    with pytest.raises(LeftOutError, match="MediaWiki"):
        source(tmp_path, b"<mediawiki>" + b"x" * 2_000_000, 1000).data()


def test_the_limit_holds_for_files_and_records(tmp_path: Path) -> None:
    source(tmp_path, b"letters " * 9)
    (tmp_path / "g.jsonl").write_text('{"text": "too long"}\n{"text": "fits"}\n')
    documents, skipped = read(tmp_path, reading=Reading(max_document_bytes=18))
    assert [document.text for document in documents] == ["fits"]
    assert skipped == {"larger than data.max_document_bytes": 2}
