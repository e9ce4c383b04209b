"""What a GGUF says of itself in front of its weights: names and values.

Called by `tokenizer_files.py`. The library `gguf` makes arrays of every tensor and of every
letter first, which takes seconds, and a count that is a lie keeps it busy for ever; here
every count is held against the bytes that there are.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from collections.abc import Container
from pathlib import Path

# By the number of a type: how one value is packed.
_SCALARS = dict(enumerate(["<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"])) | {
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_MOST_BYTES = 2**28


def read(path: Path, wanted: Container[str]) -> dict[str, object]:
    """Reads some of a GGUF's metadata, of versions 2 and 3.

    Args:
        wanted: names; others are passed over.
    Returns:
        The values that are there: numbers, texts, and lists of one of them.
    Raises:
        ValueError: if the file is no whole GGUF.
    """
    try:
        with path.open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with view:
            return _Reader(view).values(wanted)
    except (ValueError, struct.error, OverflowError, KeyError) as error:
        raise ValueError(f"{path}: not a whole GGUF ({error!s:.100})") from error


class _Reader:
    """A place in the file, which moves on with what is read."""

    def __init__(self, view: mmap.mmap) -> None:
        self._view, self._at = view, 0

    def values(self, wanted: Container[str]) -> dict[str, object]:
        """What `read` gives."""
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not known")
        self._scalar("<Q")  # number of tensors
        values: dict[str, object] = {}
        for _ in range(self._count(13)):
            name = self._string()
            value = self._value(self._scalar("<I"))
            if name in wanted:
                values[name] = value
        return values

    def _value(self, kind: int) -> object:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        kind = self._scalar("<I")
        if kind == _STRING:
            return [self._string() for _ in range(self._count(8))]
        form = _SCALARS[kind]
        count = self._count(struct.calcsize(form))
        form = f"<{count}{form[1]}"
        return list(struct.unpack(form, self._take(struct.calcsize(form))))

    def _scalar(self, form: str):
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _string(self) -> str:
        return self._take(self._count(1)).decode()

    def _count(self, size_bytes: int) -> int:
        """A count of what takes so many bytes at least, no more than there can be."""
        count = self._scalar("<Q")
        if count * size_bytes > len(self._view) - self._at:
            raise ValueError(f"it is cut at byte {len(self._view)}")
        return count

    def _take(self, size_bytes: int) -> bytes:
        start, self._at = self._at, self._at + size_bytes
        if self._at > min(len(self._view), _MOST_BYTES):
            raise ValueError(f"it is cut at byte {len(self._view)}")
        return self._view[start : self._at]
