"""Readers of files of records: JSON, JSON lines, CSV, Parquet.

A record has its text in one field and perhaps `id`, `title`, `uri` and `licence` in others;
all else in it is passed over.
"""

import codecs
import csv
import datetime
import decimal
import itertools
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from data_pipeline.text.documents import FIELDS, Document, Skipped
from data_pipeline.text.readers import encodings
from data_pipeline.text.readers.compression import (
    DamagedFileError,
    LeftOutError,
    check_expansion,
)
from data_pipeline.text.readers.source_file import TOO_LARGE, Reading, SourceFile

# What fields are called in public data, ours first.
_NAMES = {
    "text": ("text", "content", "contents", "raw_content", "body"),
    "id": ("id",),
    "title": ("title",),
    "uri": ("uri", "url"),
    "licence": ("licence", "license"),
}
_PARQUET_ROWS = 64
_DELIMITERS = ",;\t"
_BETWEEN_VALUES = re.compile(r"[\s,]*")
_SCALARS = (int, float, decimal.Decimal, uuid.UUID, datetime.date)


def text_columns(reading: Reading) -> tuple[str, ...]:
    """Names that the field of the text may have; the first that holds something counts."""
    return (reading.text_column,) if reading.text_column else _NAMES["text"]


def document_of(
    fields: Mapping[str, Any],
    default_id: str,
    uri: str,
    at: str,
    skipped: Skipped,
    reading: Reading = Reading(),  # noqa: B008  frozen
) -> Iterator[Document]:
    """Makes a document of a record's fields, or counts why there is none.

    Args:
      fields: the text, and perhaps `id`, `title`, `uri`, `licence`; numbers and UTF-8
        bytes become strings.
      default_id: id of a record without one.
      uri: location of a record without one.
      at: what to call the record in `skipped`.
    """
    text_names = text_columns(reading)
    text = _first(fields, text_names)
    if not isinstance(text, str | bytes):
        if not any(name in fields for name in text_names):
            skipped.add("no text field", at, _printable(fields))
        else:
            skipped.add("text is null" if text is None else "text is no string", at)
        return
    try:
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        skipped.add("undecodable", at)
        return
    text = encodings.without_surrogates(text)
    if not text or text.isspace():
        skipped.add("empty", at)
    elif _size_bytes(text) > reading.max_document_bytes:
        skipped.add(TOO_LARGE, at)
    else:
        found = {
            field: _string(_first(fields, _NAMES[field]))
            for field in FIELDS
            if field != "text"
        }
        found["id"] = found["id"] or default_id
        found["uri"] = found["uri"] or uri
        yield Document(text=text, **found)


def _first(fields: Mapping[str, Any], names: Iterable[str]) -> Any:
    for name in names:
        if (value := fields.get(name)) is not None:
            return value
    return None


def _size_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _printable(names: Iterable[object]) -> Iterator[str]:
    return (encodings.without_surrogates(str(name)) for name in names)


def _string(value: Any) -> str:
    """A field but the text: numbers, dates, UUIDs and bytes are written out."""
    if isinstance(value, str):
        return encodings.without_surrogates(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    usable = isinstance(value, _SCALARS) and not isinstance(value, bool)
    return str(value) if usable else ""


def read_json_lines(file: SourceFile) -> Iterator[Document]:
    """One record a line; a line that can't be used does not touch the others."""
    for number, line in enumerate(file.lines(), 1):
        at = f"{file.name}:{number}"
        if line is None:
            file.skipped.add(TOO_LARGE, at)
            continue
        if line.isspace():
            continue
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError:
            file.skipped.add("undecodable", at)
        except (ValueError, RecursionError):
            # Only the last line has no end: it may have lost the rest.
            reason = "invalid json" if line.endswith(b"\n") else "damaged"
            file.skipped.add(reason, at)
        except MemoryError:
            file.skipped.add("too large for the memory", at)
        else:
            yield from _document(file, record, number)


def _document(file: SourceFile, record: object, number: int) -> Iterator[Document]:
    return document_of(
        record if isinstance(record, dict) else {},
        f"{file.stem}:{number}",
        file.uri,
        f"{file.name}:{number}",
        file.skipped,
        file.reading,
    )


def read_json(file: SourceFile) -> Iterator[Document]:
    """Records one a line, records in an array, or one record that is the whole file."""
    first = next((line for line in file.lines() if line and not line.isspace()), b"")
    if begins_json_lines(first):
        yield from read_json_lines(file)
        return
    number = 0
    try:
        for number, value in enumerate(_json_values(file), 1):
            yield from _document(file, value, number)
    except (json.JSONDecodeError, RecursionError):
        file.skipped.add("invalid json", f"{file.name}:{number + 1}")


def begins_json_lines(line: bytes | str) -> bool:
    """Says whether a first line is a JSON object by itself."""
    try:
        return line.lstrip()[:1] in (b"{", "{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_values(file: SourceFile) -> Iterator[object]:
    """Values that follow each other, and elements of an array one by one.

    Holds no more than one of them; raises JSONDecodeError where they end or break off.
    """
    decoder = json.JSONDecoder()
    texts = codecs.iterdecode(file.chunks(), "utf-8")
    buffer, tried = next(texts, ""), 0
    in_array = buffer.lstrip().startswith("[")
    start = buffer.find("[") + 1 if in_array else 0
    ended = False
    while True:
        start = _BETWEEN_VALUES.match(buffer, start).end()  # type: ignore[union-attr]
        if in_array and buffer.startswith("]", start):
            return
        rest = len(buffer) - start
        if ended and not rest and not in_array:
            return
        if ended or rest > tried:
            try:
                value, start = decoder.raw_decode(buffer, start)
                yield value
                tried = 0
                continue
            except json.JSONDecodeError:
                if ended:
                    raise
                tried = 2 * rest  # else a long value is begun again and again
        if rest > file.reading.max_document_bytes:
            raise LeftOutError(TOO_LARGE)
        more = next(texts, None)
        ended = more is None
        buffer, start = buffer[start:] + (more or ""), 0


def read_csv(file: SourceFile) -> Iterator[Document]:
    """A table whose first row names its columns; commas, semicolons or tabs part them."""
    limit = file.reading.max_document_bytes
    csv.field_size_limit(limit)  # of this process; its own is 128 KB
    lines = _decoded(file)
    header = next(lines, "")
    delimiter = max(_DELIMITERS, key=header.count)
    # Strict, for else a quote that is not closed takes all that follows into its field.
    rows = csv.reader(
        itertools.chain([header], lines), delimiter=delimiter, strict=True
    )
    columns: list[str] | None = None
    for number in itertools.count():
        try:
            row = next(rows, None)
        except csv.Error:
            file.skipped.add("damaged", f"{file.name}:{number}")
            continue
        if row is None:
            return
        if columns is None:
            columns = row
            if not _has_text(file, columns):
                return
        elif row:
            fields = dict(zip(columns, row, strict=False))
            yield from _document(file, fields, number)


def _decoded(file: SourceFile) -> Iterator[str]:
    for line in file.lines():
        if line is None:
            raise LeftOutError(TOO_LARGE)
        if b"\0" in line:
            raise LeftOutError("binary")
        yield encodings.decode(line)


def _has_text(file: SourceFile, columns: list[str]) -> bool:
    there = any(name in columns for name in text_columns(file.reading))
    if not there:
        file.skipped.add("no text field", file.name, _printable(columns))
    return there


def read_parquet(file: SourceFile) -> Iterator[Document]:
    """The rows of a table of Arrow's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size_bytes = file.path.stat().st_size
    wanted = {*text_columns(file.reading), *itertools.chain(*_NAMES.values())}
    number = text_bytes = 0
    try:
        with pq.ParquetFile(file.path) as table:
            names = table.schema_arrow.names
            if not _has_text(file, names):
                return
            # The same text in every row is held once, until it is a document.
            columns = [name for name in dict.fromkeys(names) if name in wanted]
            for batch in table.iter_batches(_PARQUET_ROWS, columns=columns):
                held = dict(zip(batch.schema.names, batch.columns, strict=True))
                for row in range(batch.num_rows):
                    number += 1
                    try:
                        fields = {name: held[name][row].as_py() for name in held}
                    except (ValueError, OverflowError):  # no UTF-8, a date out of range
                        file.skipped.add("undecodable", f"{file.name}:{number}")
                        continue
                    for document in _document(file, fields, number):
                        text_bytes += len(document.text)
                        check_expansion(text_bytes, size_bytes)
                        yield document
    except MemoryError:  # one of Arrow's is both
        raise
    except pa.ArrowException as error:
        raise DamagedFileError(str(error)) from error
