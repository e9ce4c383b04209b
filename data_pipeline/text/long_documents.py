"""Long documents in parts, so that no document is most of a corpus or of the memory.

A part ends where the text itself has a border: before a heading, at blank lines, at a line's
or a sentence's end, at a space. All parts together are the text, to the letter.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from data_pipeline.text.documents import Document

_FEW_FILES = 16
_PARTS_OF_A_FEW = 64
_LEAST_BYTES = 8_000
# Where a part may end, best first: before what is matched in the parentheses.
_BORDERS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\n\s*\n()(?:#{1,6} |={2,}|\*{2,}|(?i:chapter|part|book|act|scene)\b)",
        r"\n\s*\n\s*\n()(?=\S)",
        r"\n\s*\n()(?=\S)",
        r"\n()",
        r"[.!?。！？।]\s?()",
        r"\s()(?=\S)",
    )
)


def part_bytes(most_bytes: int, file_sizes_bytes: Sequence[int]) -> int:
    """How long a document of a corpus may be before it is cut.

    Of a few files each is cut finer, into about 64 parts of all their text: otherwise there
    would be no other document to retrieve from and none to hold out.

    Args:
        most_bytes: of any corpus, as `DataConfig.part_bytes` has it.
        file_sizes_bytes: of the files of the corpus; none, if it does not consist of files.
    """
    if not 0 < len(file_sizes_bytes) < _FEW_FILES:
        return most_bytes
    of_a_few = max(sum(file_sizes_bytes) // _PARTS_OF_A_FEW, _LEAST_BYTES)
    return min(most_bytes, of_a_few)


def cut(document: Document, size_bytes: int) -> Iterator[Document]:
    """Gives a document as it is, or its parts, if it has more bytes than `size_bytes`.

    A part has half as many bytes or more, but for the last. Its id is the document's with its
    number, `book.txt#part-3`; title, uri and licence are the document's.
    """
    text = document.text
    # Most texts are short, and of them no bytes have to be counted.
    if 4 * len(text) <= size_bytes:
        yield document
        return
    bytes_of_char = len(text.encode()) / len(text)
    most_chars = max(2, int(size_bytes / bytes_of_char))
    if len(text) <= most_chars:
        yield document
        return
    start = number = 0
    while start < len(text):
        end = len(text)
        if end - start > most_chars:
            end = _border(text, start + most_chars // 2, start + most_chars)
        if not text[start:end].isspace():
            number += 1
            yield dataclasses.replace(
                document, id=f"{document.id}#part-{number}", text=text[start:end]
            )
        start = end


def _border(text: str, first: int, last: int) -> int:
    """The last of the best borders between two places; the second, if there is none."""
    for pattern in _BORDERS:
        ends = [match.start(1) for match in pattern.finditer(text, first, last)]
        ends = [end for end in ends if end > first]
        if ends:
            return ends[-1]
    return last
