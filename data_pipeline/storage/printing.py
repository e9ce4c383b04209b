"""What is printed: text of others made harmless, and streams that end no work.

A document, or the name of a file, may hold what a terminal obeys: escape sequences, a
carriage return, controls that reverse the order of letters. Whatever of theirs is shown goes
through `printable` or, where it is part of a line, through `printable_line`.
"""

import io
import os
import re
import signal
import sys

# All of C0 but tab and newline, DEL and C1; halves of surrogate pairs can't be encoded.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# Embeddings, overrides and isolates show letters in another order than they stand in. Marks
# (U+200E, U+200F, U+061C) and joiners stay: Arabic, Hebrew and emoji are written with them.
_REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069]")
_LINE_ENDS = re.compile("\r\n|[\u2028\u2029]")
_BREAKS = re.compile(r"[ \t]*\n\s*|\t")


def printable(text: str) -> str:
    """The text without what a terminal obeys: it keeps its letters, lines and tabs."""
    text = _REORDERING.sub("", _LINE_ENDS.sub("\n", text))
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def counted(number: int, noun: str) -> str:
    """A number of things, with the noun as it is said: "1 document", "2,000 documents"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable_line(text: str) -> str:
    """The printable text in one line, so that it can't pass for a line of ours."""
    return _BREAKS.sub(" ", printable(text))


def protect_streams(*, outlives_readers: bool = False) -> None:
    """Lets no write to standard output or error fail, whatever they are.

    What their encoding lacks is written as an escape, such as \\u2212. If the reader of a
    pipe is gone, the process ends as SIGPIPE ends others, without a word; with
    `outlives_readers`, as servers need it, it goes on. A full disk below them loses the
    lines and nothing else: see `check_output`.
    """
    sys.stdout = _protected(sys.stdout, outlives_readers)
    sys.stderr = _protected(sys.stderr, outlives_readers)


def check_output() -> None:
    """Raises OSError if lines of standard output were lost, where they are the result."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Standard) and raw.lost:
        raise OSError(raw.lost.errno, raw.lost.strerror, "standard output")


class _Standard(io.FileIO):
    """A standard stream that keeps to itself what went wrong with it."""

    def __init__(self, descriptor: int, outlives_readers: bool):
        super().__init__(descriptor, "wb", closefd=False)
        self._outlives_readers = outlives_readers
        self.lost: OSError | None = None

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and not self._outlives_readers:
                # Not from the start: pipes to workers and sockets break as well.
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                signal.raise_signal(signal.SIGPIPE)
            self.lost = self.lost or error
            return memoryview(data).nbytes


def _protected(stream, outlives_readers: bool) -> io.TextIOWrapper:
    if stream is None:  # closed by who started the process
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    stream.flush()
    raw = _Standard(stream.fileno(), outlives_readers)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        # Unbuffered (PYTHONUNBUFFERED) is by lines here: who reads a pipe waits for lines.
        line_buffering=stream.line_buffering or stream.write_through,
    )
