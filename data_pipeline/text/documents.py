"""A document, and the account of what a corpus held that could not become one."""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from data_pipeline.storage.printing import printable_line

_NAMES_KEPT = 5
_FIELDS_KEPT, _FIELD_CHARS = 20, 60


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it comes from.

    Attributes:
      id: unique within its corpus.
      text: holds something but white space, and can be encoded as UTF-8.
      title: what to call it when it is shown as a source.
      uri: where a reader finds the original.
      licence: as its publisher names it; empty if not known.
    """

    id: str
    text: str
    title: str = ""
    uri: str = ""
    licence: str = ""


FIELDS = tuple(field.name for field in dataclasses.fields(Document))


def printable(path: PurePath) -> str:
    """A path in Posix form; bytes of a name that are no UTF-8 become U+FFFD."""
    return os.fsencode(path.as_posix()).decode(errors="replace")


class Skipped:
    """Counts what was left out of a corpus by reason, and names the first of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}
        self._fields: dict[str, set[str]] = {}

    def add(self, reason: str, name: str, fields: Iterable[str] = ()) -> None:
        """Counts one file or record.

        Args:
          reason: a few words, as "undecodable".
          name: of the file or the record.
          fields: what a record has in place of what it lacks.
        """
        kept = [
            str(field)[:_FIELD_CHARS]
            for field in itertools.islice(fields, _FIELDS_KEPT)
        ]
        of_one = {"count": 1, "names": [name], "fields": kept}
        self.include({reason: of_one})

    def include(self, others: Mapping[str, Mapping]) -> None:
        """Adds what another one counted, as it says `as_dict`."""
        for reason, found in others.items():
            self._counts[reason] = self._counts.get(reason, 0) + found["count"]
            names = self._names.setdefault(reason, [])
            names += found["names"][: _NAMES_KEPT - len(names)]
            fields = self._fields.setdefault(reason, set())
            if len(fields) < _FIELDS_KEPT:
                fields.update(found.get("fields", ()))

    @property
    def total(self) -> int:
        """How much was left out, for whatever reason."""
        return sum(self._counts.values())

    def summary_lines(self) -> list[str]:
        """One line a reason, by name: "3 undecodable: notes/a.txt, b.bin, c.txt"."""
        return [
            f"{entry['count']} {reason}"
            + _advice(entry["fields"])
            + f": {', '.join(map(printable_line, entry['names']))}"
            + (", ..." if entry["count"] > len(entry["names"]) else "")
            for reason, entry in self.as_dict().items()
        ]

    def as_dict(self) -> dict[str, dict]:
        """Reason -> its count, the names of the first and the fields found, for JSON."""
        return {
            reason: {
                "count": count,
                "names": list(self._names[reason]),
                "fields": sorted(self._fields[reason])[:_FIELDS_KEPT],
            }
            for reason, count in sorted(self._counts.items())
        }


def _advice(fields: Sequence[str]) -> str:
    if not fields:
        return ""
    return f" (data.text_column can name one of {', '.join(fields)})"


def write_documents(
    path: Path, documents: Sequence[Document], *, first_row: int
) -> int:
    """Writes documents as a Parquet table, with their row in the split.

    Returns:
        UTF-8 bytes of their texts.
    """
    columns = {
        field: [getattr(document, field) for document in documents] for field in FIELDS
    }
    sizes_bytes = [len(text.encode()) for text in columns["text"]]
    columns["size_bytes"] = sizes_bytes
    columns["row"] = list(range(first_row, first_row + len(documents)))
    pyarrow.parquet.write_table(pa.table(columns), path, compression="zstd")
    return sum(sizes_bytes)


def read_sources(paths: Sequence[Path]) -> pa.Table:
    """All columns but the text of tables that `write_documents` wrote, in order."""
    columns = ["id", "title", "uri", "licence", "size_bytes"]
    tables = [pa.parquet.read_table(path, columns=columns) for path in paths]
    return pa.concat_tables(tables) if tables else pa.table({c: [] for c in columns})


def row_of_id(table: pa.Table, deleted_D: np.ndarray) -> dict[str, int]:
    """Row of each document's id, of those that are not deleted."""
    ids = table.column("id").to_pylist()
    there = np.ones(len(ids), bool)
    there[deleted_D] = False
    return {ids[row]: int(row) for row in np.flatnonzero(there)}
