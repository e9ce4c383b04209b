"""What a decoder has read, on disk: for the next run of the same decoder.

Runs that differ in their seed, and evaluations after an update of the database, read most
neighbours that others have read. An entry is a file, named by the hash of what was read
and by whom; whoever writes one writes it whole. Several runs may share a folder.
"""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

_KEPT_SHARE = (
    0.9  # of the limit, once it was reached: so that not each entry makes room
)


class EncodingsFolder:
    """Arrays by name in a folder of bounded size; what was used longest ago goes first.

    A folder that cannot be read or written costs what it would have spared, no more.
    """

    def __init__(self, folder: Path, most_bytes: int, reader: str):
        """Begins with what other runs have left there.

        Args:
            folder: for these entries alone; it is made when the first one is kept.
            most_bytes: of all files together. Runs that share a folder each keep to it.
            reader: says what an entry depends on besides its name: the decoder's weights
                and settings. Entries of other readers are not found.
        """
        self._folder, self._most_bytes, self._reader = folder, most_bytes, reader
        self._held_bytes = sum(size for _, size, _ in self._entries())

    def get(self, name: bytes, dtype) -> np.ndarray | None:
        """The entry of a name; None if there is none that is whole."""
        path = self._path(name)
        try:
            entry = np.load(path, allow_pickle=False)
            os.utime(path)
        # A file that is cut or no array is as good as none: it is written anew.
        except (OSError, ValueError, EOFError):
            return None
        # Numpy's files know no bfloat16: they have its two bytes.
        return entry.view(dtype) if entry.dtype.kind == "V" else entry

    def keep(self, name: bytes, entry: np.ndarray) -> None:
        """Writes an entry, and removes old ones above the limit."""
        if entry.nbytes > self._most_bytes:
            return
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=self._folder, suffix=".part", delete=False
            ) as part:
                try:
                    np.save(part, entry, allow_pickle=False)
                    os.replace(part.name, self._path(name))
                except BaseException:
                    os.unlink(part.name)
                    raise
            self._held_bytes += entry.nbytes
            if self._held_bytes > self._most_bytes:
                self._make_room()

    def _path(self, name: bytes) -> Path:
        named = hashlib.sha256(self._reader.encode() + b"\0" + name)
        return self._folder / f"{named.hexdigest()}.npy"

    def _entries(self) -> list[tuple[float, int, str]]:
        """When each file was used last, its bytes and its path."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as files:
            for file in files:
                # What an interrupted run left half-written goes like anything else.
                if file.name.endswith((".npy", ".part")):
                    with contextlib.suppress(OSError):  # another run has removed it
                        there = file.stat(follow_symlinks=False)
                        found.append((there.st_mtime, there.st_size, file.path))
        return sorted(found)

    def _make_room(self) -> None:
        entries = self._entries()
        self._held_bytes = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if self._held_bytes <= _KEPT_SHARE * self._most_bytes:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
                self._held_bytes -= size
