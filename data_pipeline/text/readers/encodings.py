"""Bytes into characters: UTF-8, UTF-16 and UTF-32, and Windows-1252 where it is evident."""

import codecs
import itertools
import re
from collections.abc import Iterable, Iterator

# Longest first: the mark of UTF-32 begins as that of UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE_BYTES = 4096
_NEVER_TYPED = bytes({*range(32)} - {*b"\t\r\n\f"})
# What Windows-1252 of a western language does not have: control characters, three letters
# in a row that are not ASCII (Cyrillic, Greek and Chinese in other encodings), and signs
# within a word (other languages in Latin letters).
_NOT_WESTERN = re.compile(
    r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]"
    r"|[^\W\d_a-zA-Z]{3}"
    r"|[a-zA-Z][^\w\s\x00-\x7f\u2010-\u201f\u2026\xa0\xad\xb7\xb4][a-z]"
)
_MAX_WESTERN_SHARE = 1 / 3  # of characters that are not ASCII


def utf8_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Gives the chunks of a file in UTF-8 without its mark, if it is in UTF-16 or -32.

    All else is given as it is, and `decode` decides.

    Raises:
      UnicodeDecodeError: if a file is not what its beginning says.
    """
    chunks = iter(chunks)
    first = next(chunks, b"")
    mark, encoding = next(
        (known for known in _MARKS if first.startswith(known[0])), (b"", _guess(first))
    )
    chunks = itertools.chain([first[len(mark) :]], chunks)
    if encoding == "utf-8":
        yield from chunks
    else:
        for text in codecs.iterdecode(chunks, encoding):
            yield text.encode()


def _guess(data: bytes) -> str:
    """Tells UTF-16 without a mark: half of its bytes are zero and the others are ASCII."""
    even, odd = data[0:_SAMPLE_BYTES:2], data[1:_SAMPLE_BYTES:2]
    for letters, zeros, encoding in (
        (even, odd, "utf-16-le"),
        (odd, even, "utf-16-be"),
    ):
        typed = len(letters.translate(None, delete=_NEVER_TYPED))
        if zeros.count(0) > 0.7 * len(zeros) > 1 and typed > 0.95 * len(letters):
            return encoding
    return "utf-8"


def decode(data: bytes) -> str:
    """Decodes UTF-8, or else Windows-1252 (and so Latin-1), where nothing speaks against.

    Raises:
      UnicodeDecodeError: for other bytes.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        text = data.decode("cp1252")
        foreign = len(text) - len(text.encode("ascii", "ignore"))
        if _NOT_WESTERN.search(text) or foreign > _MAX_WESTERN_SHARE * len(text):
            raise
        return text


def without_surrogates(value: str) -> str:
    """Joins surrogates that are a pair; lone ones, which no file can hold, become U+FFFD."""
    if value.isascii():
        return value
    try:
        value.encode()
        return value
    except UnicodeEncodeError:
        pass
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
