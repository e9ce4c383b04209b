"""Files of a stored folder that are fetched when they are read, and let go when others come.

A copy of a stored folder may lack files, of which its `streamed.json` says where they are and what
they must be. Whoever reads them gets them one after the other, each checked, the next one
fetched meanwhile; so there is room enough for a few of them, however many there are.
"""

import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data_pipeline.storage.files import read_sealed
from data_pipeline.storage.object_store import STREAMED, ObjectStore

# Files stay for as long as they are no more than this: a small dataset is fetched once.
_KEPT_BYTES = 4_000_000_000
# The one that is read and the one that comes next.
_LEAST = 2


class StreamedFiles:
    """The files that a copy of a stored folder lacks; none, if it is whole."""

    def __init__(self, copy: Path):
        """Reads what the copy says of itself.

        Raises:
            ValueError: if that is damaged.
        """
        self._copy, self._url = copy, ""
        self._entries: dict[Path, dict] = {}
        if (copy / STREAMED).exists():
            told = read_sealed(copy / STREAMED)
            if told is None:
                raise ValueError(
                    f"{copy / STREAMED} is damaged: remove {copy}, it is copied again"
                )
            self._url = told["url"]
            self._entries = {
                copy / name: entry for name, entry in told["files"].items()
            }

    def __contains__(self, path: Path) -> bool:
        return path in self._entries

    def check(self, path: Path, entry: Mapping) -> None:
        """Raises ValueError if a file in the store is not the one that was written."""
        if self._entries[path] != entry:
            raise ValueError(
                f"{self._url} has another {path.relative_to(self._copy)} than the folder "
                "that was stored: store it again"
            )

    def in_turn(self, paths: Iterable[Path]) -> Iterator[Path]:
        """Gives each file, once it is here and right: the one before may still be read.

        The last ones stay as long as this object.

        Raises:
            StoreError: if the store can't be read.
            ValueError: if an object is not there, or not what was stored.
        """
        held: dict[Path, Path] = {}  # the one that was read last stands last
        prefix = f"streamed-{socket.gethostname()}-"
        _remove_those_of_the_dead(self._copy.parent, prefix)
        made = tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=self._copy.parent)
        weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
        for path in paths:
            here = held.pop(path) if path in held else self._fetched(path, Path(made))
            held[path] = here
            self._let_go(held)
            yield held[path]

    def _fetched(self, path: Path, folder: Path) -> Path:
        target = folder / path.name
        name = path.relative_to(self._copy).as_posix()
        ObjectStore(self._url).receive("", name, self._entries[path], target)
        return target

    def _let_go(self, held: dict[Path, Path]) -> None:
        sizes = {path: self._entries[path]["size_bytes"] for path in held}
        for path in list(held)[:-_LEAST]:
            if sum(sizes.values()) <= _KEPT_BYTES:
                return
            held.pop(path).unlink()
            del sizes[path]


def _remove_those_of_the_dead(folder: Path, prefix: str) -> None:
    """Removes what killed processes of this machine have left."""
    for left in folder.glob(f"{prefix}*"):
        process = left.name.removeprefix(prefix).partition("-")[0]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (ValueError, PermissionError):  # none of ours, or another user's
            continue
