"""Errors of the system told apart from damage: `errno` decides what is said, and what to do.

Whoever is told to build again for want of a descriptor or a permission throws away a
database that is whole.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

# What these say is that the folder is not as it was written: damage.
_OF_THE_FOLDER = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_ROOM = "make room and start the same again"
_OWNER = "the files are whole; ask for the permission, or be who owns them"
_ADVICE = {
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "the whole system has too many; close other programs",
    errno.ENOMEM: "free memory, or raise the limits of memory and of maps "
    "(`ulimit -v`, vm.max_map_count)",
    errno.EACCES: _OWNER,
    errno.EPERM: _OWNER,
    errno.EROFS: "it can be read here, not changed",
    errno.EIO: "the disk or the network could not do it; try again, and look into the "
    "system's log before anything is deleted",
    errno.ESTALE: "the network's file system lost it; try again",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "a link points at itself; remove it",
    errno.EAGAIN: "the system has no room for another process or thread; raise `ulimit -u`",
}


def is_damage(error: OSError) -> bool:
    """Whether an error speaks of the file itself, and not of the system or its limits."""
    return _errno(error) in _OF_THE_FOLDER


def _errno(error: OSError) -> int | None:
    # numpy says no more than this when the disk is full.
    if re.fullmatch(r"\d+ requested and \d+ written", str(error)):
        return errno.ENOSPC
    return error.errno


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Says of a limit of the system which file it was and what to do about it.

    Args:
        path: what is being read or written, for errors that name no file.
    Raises:
        OSError: of the same errno, for a limit; all other errors as they are.
    """
    try:
        yield
    except MemoryError as error:
        raise explanation(OSError(errno.ENOMEM, str(error)), path) from error
    except OSError as error:
        better = explanation(error, path)
        if better is error:
            raise
        raise better from error


def explanation(error: OSError, path: Path) -> OSError:
    """The error with its file and with what to do; itself, if nothing better is known."""
    number = _errno(error)
    advice = _ADVICE.get(number or 0)
    if number is None or advice is None or advice in (error.strerror or ""):
        return error
    said = os.strerror(number) if not error.filename else error.strerror
    # Arrow names the file in its text alone.
    named = re.search(r"local file '([^']*)'", error.strerror or "")
    filename = error.filename or (named[1] if named else os.fspath(path))
    return OSError(number, f"{said}: {advice}", filename)
