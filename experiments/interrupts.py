"""Ctrl-C ends a command with one line, from its first moment on: nothing large is imported here."""

import contextlib
import os
import signal
import sys

INTERRUPTED = 130  # as a shell reports Ctrl-C


def end_at_interrupt() -> None:
    """Makes Ctrl-C end the process with one line, also one that came before and was held back."""
    signal.signal(signal.SIGINT, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _stop(signum: int, frame: object) -> None:
    """Ends the process at Ctrl-C; all files are written whole or not at all.

    An exception would not do: native code that calls Python back may swallow it, and
    work under way in native threads crashes Python when it ends by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second one
    # The signal may have come in the middle of a `print`, where another one raises.
    with contextlib.suppress(OSError, RuntimeError):
        os.write(2, b"\nstopped; the same command goes on from here\n")
        sys.stdout.flush()
    os._exit(INTERRUPTED)
