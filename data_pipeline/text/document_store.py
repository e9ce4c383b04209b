"""Documents on disk, in the order they came, read back by number: their text need not fit
in memory.
"""

import contextlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_pipeline.storage.mapped_arrays import open_array
from data_pipeline.text.documents import FIELDS, Document

# A text is not escaped, which would take several times its memory; the rest follows it.
_TEXTS, _STARTS = "texts", "starts.npy"
_BESIDE_TEXT = tuple(field for field in FIELDS if field != "text")


class Writer(contextlib.AbstractContextManager):
    """Writes documents into a folder; what it holds counts once the writer is closed."""

    def __init__(self, folder: Path):
        """Makes the files."""
        self._folder = folder
        self._file = (folder / _TEXTS).open("wb")
        self._starts = array("q", [0])

    def append(self, document: Document) -> None:
        """Writes one more document."""
        names = [getattr(document, field) for field in _BESIDE_TEXT]
        for record in (document.text.encode(), json.dumps(names).encode()):
            self._file.write(record)
            self._starts.append(self._starts[-1] + len(record))

    def __exit__(self, *error: object) -> None:
        self._file.close()
        np.save(self._folder / _STARTS, np.array(self._starts, np.int64))


class Spool(contextlib.AbstractContextManager):
    """The documents of several folders, numbered in the folders' order."""

    def __init__(self, folders: Sequence[Path]):
        """Opens them; raises ValueError naming a file that is damaged."""
        self._folders = folders
        self._starts = [open_array(folder / _STARTS) for folder in folders]
        counts = [len(starts) // 2 for starts in self._starts]
        self._first = np.cumsum([0, *counts]).tolist()
        self._open: tuple[int, BinaryIO] | None = None  # the folder that was read last

    def __len__(self) -> int:
        return self._first[-1]

    def __exit__(self, *error: object) -> None:
        if self._open is not None:
            self._open[1].close()

    def place(self, number: int) -> tuple[int, int]:
        """A document's folder and its place there."""
        folder = bisect_right(self._first, number) - 1
        return folder, number - self._first[folder]

    def read(self, number: int) -> Document:
        """The document of a number, 0 .. len - 1."""
        folder, place = self.place(number)
        starts = self._starts[folder][2 * place : 2 * place + 3].tolist()
        file = self._file(folder)
        file.seek(starts[0])
        text = file.read(starts[1] - starts[0]).decode()
        names = json.loads(file.read(starts[2] - starts[1]))
        return Document(text=text, **dict(zip(_BESIDE_TEXT, names, strict=True)))

    def _file(self, folder: int) -> BinaryIO:
        if self._open is None or self._open[0] != folder:
            self.__exit__()
            self._open = folder, (self._folders[folder] / _TEXTS).open("rb")
        return self._open[1]
