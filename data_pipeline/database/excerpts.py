"""Passages as people read them: whole sentences and lines around the chunk that matched.

A chunk begins and ends where its tokens do, which may be within a word or a character. What
is shown of it begins and ends at a border of the text, and the match is marked in it.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterator

import numpy as np

from data_pipeline.database.results import Found
from data_pipeline.database.snapshot import Snapshot
from data_pipeline.storage.printing import printable

MARK = ">"  # in front of the lines that hold the match
_BEGIN, _END = (
    "\x02",
    "\x03",
)  # stand for its ends while lines are made; no text has them
_CUT = "..."  # where no border was near
_MIN_CHARS = 80  # a shorter match, such as a document's tail, says too little alone
_MAX_WORD_CHARS = 30  # scripts without spaces have no border between words
# The ends of sentences and lines; a line keeps its indentation.
_BORDER = re.compile(r"(?<=[.!?])[\"'”’)\]]*[ \t]+|\n+|(?<=[。！？])")


@dataclasses.dataclass(frozen=True, slots=True)
class Excerpt:
    """A match with the text around it, and whether the text was cut where it has no border."""

    before: str
    match: str
    after: str
    cut_before: bool = False
    cut_after: bool = False

    @property
    def text(self) -> str:
        """What is shown, without marks."""
        return self.before + self.match + self.after

    def lines(self, width: int = 88) -> str:
        """The excerpt for a terminal: its own lines, long ones cut, the match marked."""
        parts = [printable(part) for part in (self.before, self.match, self.after)]
        text = f"{parts[0]}{_BEGIN}{parts[1]}{_END}{parts[2]}".expandtabs(4)
        text = f"{_CUT} " * self.cut_before + text + f" {_CUT}" * self.cut_after
        shown, within = [], False
        for line in _wrapped(text, width):
            begins, ends = _BEGIN in line, _END in line
            line = line.replace(_BEGIN, "").replace(_END, "").rstrip()
            mark = MARK if self.match and line and (within or begins) else " "
            shown.append(f" {mark} {line}".rstrip())
            within = (within or begins) and not ends
        return "\n".join(shown)


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Lines of at most so many characters, blank ones never two in a row."""
    for line in textwrap.dedent(re.sub(r"\n\s*\n", "\n\n", text)).splitlines():
        margin = line[: len(line) - len(line.lstrip())]
        yield from textwrap.wrap(
            line,
            width,
            subsequent_indent=margin,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]


def excerpt_at(snapshot: Snapshot, chunk_id: int) -> Excerpt:
    """The excerpt at a chunk of the training split, with as much as the chunks around it hold.

    Raises:
        IndexError: if there is no such chunk.
    """
    table, chunk_len = snapshot.chunks(), snapshot.chunk_len
    decode = snapshot.tokenizer.decode_bytes
    first = max(chunk_id - 1, 0)
    rows = table.take("documents", np.array([first, chunk_id]))
    starts = first == chunk_id or rows[0] != rows[1]
    before = b"" if starts else decode(table.take("tokens", np.array([first]))[0])
    (tokens_R,), (length,) = table.passages(np.array([chunk_id]), 3 * chunk_len)
    match = decode(tokens_R[: min(length, chunk_len)])
    after = decode(tokens_R[chunk_len : min(length, 2 * chunk_len)])
    starts = starts or table.take("offsets", np.array([first]))[0] == 0
    ends = length <= 2 * chunk_len
    return excerpt_of(before, match, after, starts=bool(starts), ends=bool(ends))


def excerpt_of_found(found: Found) -> Excerpt:
    """The excerpt of a passage whose database is elsewhere: nothing is known around it."""
    match, after = (text.strip("\ufffd") for text in (found.text, found.continuation))
    return excerpt_of(
        b"", match.encode(), after.encode(), starts=found.offset == 0, ends=not after
    )


def excerpt_of(
    before: bytes, match: bytes, after: bytes, *, starts: bool, ends: bool
) -> Excerpt:
    """Moves the ends of a passage to borders of its text, those of the match to words.

    Args:
        before, match, after: UTF-8 that follows one on the other; cut characters at the
            outer ends are left out.
        starts, ends: whether the document starts with `before`, ends with `after`.
    """
    # Documents are whole UTF-8: only the outer ends can hold a part of a character.
    text = (before + match + after).decode(errors="ignore")
    begin = len(before.decode(errors="ignore"))
    end = len((before + match).decode(errors="ignore"))
    borders = [found.end() for found in _BORDER.finditer(text)]
    if starts:
        borders.insert(0, 0)
    # The latest that leaves enough to read, or the earliest there is.
    early = [border for border in borders if border <= begin]
    enough = [at for at in early if len(text[at:end].strip()) >= _MIN_CHARS]
    start = (enough[-1:] or early[:1] or [_word_after(text, 0, begin)])[0]
    late = [len(text)] if ends else [border for border in borders if border >= end]
    stop = (late[-1:] or [_word_before(text, end, len(text))])[0]
    begin, end = _marked(text, begin, end)
    begin, end = max(begin, start), min(end, stop)
    return Excerpt(
        text[start:begin],
        text[begin:end],
        text[end:stop].rstrip(),
        cut_before=not early and start < begin + 1,
        cut_after=not late,
    )


def _word_after(text: str, at: int, most: int) -> int:
    """The first word that begins in a text that was cut at its start."""
    space = re.compile(r"\s+").search(text, at, most)
    return space.end() if space else at


def _word_before(text: str, least: int, at: int) -> int:
    """Where the last whole word ends in a text that was cut at its end."""
    spaces = list(re.compile(r"\s+").finditer(text, least, at))
    return spaces[-1].start() if spaces else at


def _marked(text: str, begin: int, end: int) -> tuple[int, int]:
    """The match with the words that its ends cut, without white space at its ends."""
    head = re.search(rf"\w{{0,{_MAX_WORD_CHARS}}}$", text[:begin])
    tail = re.match(rf"\w{{0,{_MAX_WORD_CHARS}}}", text[end:])
    if head and re.match(r"\w", text[begin:]) and len(head[0]) < _MAX_WORD_CHARS:
        begin -= len(head[0])
    if tail and re.search(r"\w$", text[:end]) and len(tail[0]) < _MAX_WORD_CHARS:
        end += len(tail[0])
    match = text[begin:end]
    begin += len(match) - len(match.lstrip())
    return begin, max(begin, begin + len(match.strip()))
