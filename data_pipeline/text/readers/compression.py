"""The bytes of a file, decompressed by its suffix, a bounded amount at a time.

What is whole before a cut is given before `DamagedFileError` is raised. A few kilobytes can
hold gigabytes, so a file that expands beyond reason is given up (`LeftOutError`).
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".gz", ".bz2", ".xz", ".zst")

# Text that people write shrinks to a third or a tenth, logs of one line again and again to
# a hundredth; an expansion is judged once it could hurt.
MAX_EXPANSION = 500
_JUDGED_FROM_BYTES = 16_000_000
# As of `zstd --long=31`, with which large dumps are packed; the formats allow more.
_MAX_WINDOW_BYTES = 1 << 31

_CHUNK_BYTES = 1 << 20
# What decompressors without a limit of their own are given at once: zstd makes 32 MB of a
# kilobyte at most, gzip a thousandfold.
_PIECE_BYTES = {".gz": 1 << 14, ".zst": 1 << 10}


class DamagedFileError(Exception):
    """Says that a compressed file ends early or does not decompress."""


class LeftOutError(Exception):
    """Says, in the few words of `Skipped`, why a file can't be read any further."""


def chunks(path: Path) -> Iterator[bytes]:
    """Yields the bytes of a file.

    Raises:
      DamagedFileError: once all is given that could be.
      LeftOutError: for a file that expands too much or needs too much memory.
      OSError: of the file system.
    """
    new = _DECOMPRESSORS.get(path.suffix.lower())
    with path.open("rb") as file:
        if new is None:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
            return
        piece_bytes = _PIECE_BYTES.get(path.suffix.lower(), 1 << 16)
        pieces = iter(lambda: file.read(piece_bytes), b"")
        size_bytes = 0
        for chunk in _gathered(_decompressed(pieces, new)):
            size_bytes += len(chunk)
            yield chunk
            check_expansion(size_bytes, file.tell())


def check_expansion(size_bytes: int, compressed_bytes: int) -> None:
    """Raises LeftOutError where more came out of a file than text can have had."""
    if size_bytes > max(_JUDGED_FROM_BYTES, MAX_EXPANSION * compressed_bytes):
        raise LeftOutError(f"too large (expands more than {MAX_EXPANSION} times)")


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Joins small pieces, and gives what it has before an error goes on."""
    held: list[bytes] = []
    held_bytes = 0
    try:
        for piece in pieces:
            held.append(piece)
            held_bytes += len(piece)
            if held_bytes >= _CHUNK_BYTES:
                yield b"".join(held)
                held, held_bytes = [], 0
    except DamagedFileError:
        yield b"".join(held)
        raise
    yield b"".join(held)


def _decompressed(pieces: Iterator[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    """Decompresses all frames of a file, one after the other, and notices a cut one."""
    frame, begun = new(), False
    for data in pieces:
        while data:
            if not begun and not (data := data.lstrip(b"\0")):
                break  # padding between frames
            yield from _step(frame, data)
            begun, data = not frame.eof, b""
            if frame.eof:
                data, frame = frame.unused_data, new()
    if begun:
        raise DamagedFileError("the last frame is not complete")


def _step(frame: Any, data: bytes) -> Iterator[bytes]:
    import zstandard

    try:
        if not isinstance(frame, bz2.BZ2Decompressor | lzma.LZMADecompressor):
            yield frame.decompress(data)
            return
        yield frame.decompress(data, _CHUNK_BYTES)
        while not (frame.eof or frame.needs_input):
            yield frame.decompress(b"", _CHUNK_BYTES)
    except (zstandard.ZstdError, lzma.LZMAError) as error:
        if (
            "memory" in str(error).lower()
        ):  # "requires too much", "usage limit exceeded"
            raise LeftOutError("too large (window of the compression)") from error
        raise DamagedFileError(str(error)) from error
    except (OSError, ValueError, zlib.error) as error:  # OSError: of bz2
        raise DamagedFileError(str(error)) from error


def _zstd() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),  # with a gzip header
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(memlimit=_MAX_WINDOW_BYTES),
    ".zst": _zstd,
}
