"""Locks that keep processes from changing the same files at the same time."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.storage.progress import say

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def locked(path: Path, doing: str, *, waits: bool = False) -> Iterator[None]:
    """Holds the lock of a file, which stays behind; the end of the process frees it.

    Args:
        doing: what the holder does to the file's folder, for messages: "changing".
        waits: for another process that holds it.
    Raises:
        ValueError: if another process holds it, and this one does not wait. Where there are no locks, a line is
            printed instead.
    """
    # A link would be followed out of the folder. What the holder wrote there stays.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().decode(errors="replace")
            raise ValueError(
                f"another process is {doing} {path.parent}: wait until it is done"
                + (f" ({holder})" if holder else "")
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            say(
                f"{path.parent} is on a file system without locks: see to it that no "
                f"other process is {doing} it meanwhile"
            )
        with contextlib.suppress(OSError):  # a lock holds on a full disk too
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
