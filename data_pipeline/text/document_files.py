"""Readers of one file of documents: plain text, WikiText, JSON lines, Parquet.

Called by `corpora`. Each reader yields what is usable and counts the rest by name; a
fault in the data is never an exception.
"""

import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from data_pipeline.text.documents import FIELDS, Document, Skipped

COMPRESSIONS = (".gz", ".xz", ".zst")
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".py", ".html", ".htm", ".tex")

_CHUNK_BYTES = 1 << 20
_PARQUET_ROWS = 64
_BOM = b"\xef\xbb\xbf"
# " = Title = " between blank lines; " = = Section = = " is no title.
_WIKITEXT_TITLE = re.compile(
    r"(?:^[ \t]*\n|\A)^ = (?!=)([^\n]*[^=\n]) = $(?=\n\s*?\n)", re.MULTILINE
)
_MARKDOWN_TITLE = re.compile(r"#{1,6}[ \t]+(.+?)[ \t#]*$")
_RST_TITLE = re.compile(r"(\S[^\n]*)\n([=\-~*#^\"])\2{2,}[ \t]*(?:\n|$)")


class DamagedFileError(Exception):
    """Says that a compressed file ends early or does not decompress."""


def kind(path: Path) -> str:
    """Says which reader a file needs: "jsonl", "parquet", "text" or "" for unknown."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    if name.endswith(".jsonl"):
        return "jsonl"
    if name.endswith(".parquet"):
        return "parquet" if name == path.name.lower() else ""
    return "text" if name.endswith(TEXT_SUFFIXES) else ""


def read_file(path: Path, name: str, skipped: Skipped) -> Iterator[Document]:
    """Reads the documents of one file, whatever its format.

    Args:
      path: the file; of unknown kind, it is read as text.
      name: what to call it in ids of text and in `skipped`: its path in the corpus.
      skipped: receives what could not be used.
    """
    readers = {"jsonl": _read_json_lines, "parquet": _read_parquet}
    try:
        yield from readers.get(kind(path), _read_text)(path, name, skipped)
    except DamagedFileError:
        skipped.add("damaged", name)
    except OSError:
        skipped.add("unreadable", name)


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (*COMPRESSIONS, ".jsonl", ".parquet", *TEXT_SUFFIXES):
        name = name.removesuffix(suffix)
    return name or path.name


def _read_text(path: Path, name: str, skipped: Skipped) -> Iterator[Document]:
    chunks = []
    for chunk in _chunks(path):
        if b"\0" in chunk:  # before a film or a disk image is in memory
            skipped.add("binary", name)
            return
        chunks.append(chunk)
    try:
        text = b"".join(chunks).removeprefix(_BOM).decode()
    except UnicodeDecodeError:
        skipped.add("undecodable", name)
        return
    del chunks
    if not text.strip():
        skipped.add("empty", name)
    elif articles := _wikitext_articles(text):
        for number, (title, article) in enumerate(articles, 1):
            yield Document(f"{name}:{number}", article, title, str(path))
    else:
        yield Document(name, text, _title(text, path), str(path))


def _wikitext_articles(text: str) -> list[tuple[str, str]]:
    """Titles and texts, if the file begins as WikiText does; else nothing."""
    titles = list(_WIKITEXT_TITLE.finditer(text))
    if not titles or text[: titles[0].start()].strip():
        return []
    starts = [0, *(match.start() for match in titles[1:]), len(text)]
    return [
        (match[1], text[starts[i] : starts[i + 1]]) for i, match in enumerate(titles)
    ]


def _title(text: str, path: Path) -> str:
    beginning = text[:2000].lstrip()
    if path.suffix != ".py":
        for pattern in (_MARKDOWN_TITLE, _RST_TITLE):
            if match := pattern.match(beginning.split("\n\n")[0] + "\n"):
                return match[1].strip()
    return _stem(path)


def _read_json_lines(path: Path, name: str, skipped: Skipped) -> Iterator[Document]:
    for number, line in enumerate(_lines(_chunks(path)), 1):
        if number == 1:
            line = line.removeprefix(_BOM)
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError:
            skipped.add("undecodable", f"{name}:{number}")
            continue
        except (ValueError, RecursionError):
            skipped.add("invalid json", f"{name}:{number}")
            continue
        fields = record if isinstance(record, dict) else {}
        yield from document_of(
            fields, f"{_stem(path)}:{number}", str(path), f"{name}:{number}", skipped
        )


def _read_parquet(path: Path, name: str, skipped: Skipped) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = [c for c in FIELDS if c in file.schema_arrow.names]
            if "text" not in columns:
                skipped.add("no text field", name)
                return
            number = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=columns):
                for row in range(batch.num_rows):
                    number += 1
                    at = f"{name}:{number}"
                    try:
                        fields = {c: batch[c][row].as_py() for c in columns}
                    except UnicodeDecodeError:
                        skipped.add("undecodable", at)
                        continue
                    default_id = f"{_stem(path)}:{number}"
                    yield from document_of(fields, default_id, str(path), at, skipped)
    except pa.ArrowInvalid as error:
        raise DamagedFileError(str(error)) from error


def document_of(
    fields: Mapping[str, object], default_id: str, uri: str, at: str, skipped: Skipped
) -> Iterator[Document]:
    """Makes a document of a record's fields, or counts why there is none.

    Args:
      fields: `text`, and perhaps `id`, `title`, `uri`, `licence`; numbers and UTF-8
        bytes become strings.
      default_id: id of a record without one.
      uri: location of a record without one.
      at: what to call the record in `skipped`.
    """
    text = fields.get("text")
    if not isinstance(text, str | bytes):
        skipped.add("no text field", at)
        return
    try:
        values = {field: _string(fields.get(field)) for field in FIELDS}
    except UnicodeError:
        skipped.add("undecodable", at)
        return
    if not values["text"].strip():
        skipped.add("empty", at)
        return
    values["id"] = values["id"] or default_id
    values["uri"] = values["uri"] or uri
    yield Document(**values)


def _string(value: object) -> str:
    """Raises UnicodeError for bytes that are no UTF-8 and for lone surrogates."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        value.encode()
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number else ""


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Splits at newlines only: JSON lines may hold any other line separator."""
    rest: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    yield b"".join(rest)


def _chunks(path: Path) -> Iterator[bytes]:
    """Yields the bytes of a file, decompressed by its suffix."""
    if path.suffix.lower() == ".zst":
        yield from _zstd_chunks(path)
        return
    try:
        with _open(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise DamagedFileError(str(error)) from error


def _open(path: Path) -> BinaryIO | gzip.GzipFile | lzma.LZMAFile:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".xz":
        return lzma.open(path, "rb")
    return path.open("rb")


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    """Reads all frames of a file and notices a cut one, unlike zstandard's reader."""
    import zstandard

    try:
        with path.open("rb") as file:
            frame = zstandard.ZstdDecompressor().decompressobj()
            begun = False
            while data := file.read(_CHUNK_BYTES // 8):
                while data:
                    yield frame.decompress(data)
                    begun, data = not frame.eof, b""
                    if frame.eof:
                        data = frame.unused_data
                        frame = zstandard.ZstdDecompressor().decompressobj()
    except zstandard.ZstdError as error:
        raise DamagedFileError(str(error)) from error
    if begun:
        raise DamagedFileError("the last frame is not complete")
