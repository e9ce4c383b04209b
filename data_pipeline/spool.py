"""Documents on disk, in the order they came, read back by number: their text need not fit
in memory.
"""

import dataclasses
import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.documents import Document

_FIELDS = tuple(field.name for field in dataclasses.fields(Document))


class Spool:
    """A file of documents; of each its place is in memory."""

    def __init__(self, path: Path):
        """Makes the file; `close` removes it."""
        self._path = path
        self._file = path.open("w+b")
        self._starts = array("q", [0])

    def close(self) -> None:
        """Removes the file."""
        self._file.close()
        self._path.unlink()

    def append(self, document: Document) -> int:
        """Writes a document; its number."""
        values = [getattr(document, field) for field in _FIELDS]
        # ASCII escapes would double most of the world's text.
        record = json.dumps(values, ensure_ascii=False).encode()
        self._file.seek(self._starts[-1])
        self._file.write(record)
        self._starts.append(self._starts[-1] + len(record))
        return len(self._starts) - 2

    def read(self, number: int) -> Document:
        """The document of a number."""
        start, end = self._starts[number : number + 2]
        self._file.seek(start)
        return Document(*json.loads(self._file.read(end - start)))


class Spooled:
    """Some documents of a spool, each read when it is asked for."""

    def __init__(self, spool: Spool, numbers: Sequence[int]):
        """Takes the documents' numbers, in their order."""
        self._spool, self._numbers = spool, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Document]:
        return map(self._spool.read, self._numbers)
