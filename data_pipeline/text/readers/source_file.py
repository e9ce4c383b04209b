"""One file of a corpus, as all readers of `document_files` get it."""

import errno
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from data_pipeline.text.documents import Document, Skipped
from data_pipeline.text.readers import compression, encodings
from data_pipeline.text.readers.compression import LeftOutError

# What a file begins with that is not the text it looks like.
_OTHERS = (
    (rb"%PDF-", "PDF under another name"),
    (rb"\{\\rtf", "RTF (save it as text, HTML or .docx)"),
    (
        rb"(<\?xml[^>]*>\s*)?<mediawiki\b",
        "MediaWiki dump (extract its text, as with wikiextractor)",
    ),
    (
        rb"(<\?xml[^>]*>\s*)?(<!--.{0,999}?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg\b",
        "drawing",
    ),
    (
        rb"From \S+ [^\n]*\d{4}\r?\n[!-9;-~]+: ",
        "mail box (save its messages as text)",
    ),
    (rb"-----BEGIN [A-Z0-9 ]+-----\r?\n", "key or certificate"),
)

TOO_LARGE = "larger than data.max_document_bytes"
# Faults of the system and of no file: a corpus without such a file would be another.
OF_THE_SYSTEM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(frozen=True, slots=True)
class Reading:
    """How the user wants files to be read; fields of `DataConfig` say the same.

    Attributes:
      text_column: name of the records' field that holds the text; "" for those known.
      max_document_bytes: most bytes of a file of text or of a record; what is larger is
        left out, so that no single one fills the memory.
    """

    text_column: str = ""
    max_document_bytes: int = 600_000_000


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file, and the account of what in it could not become a document.

    Attributes:
      path: where it is.
      name: what to call it in ids of text and in `skipped`: its path in the corpus.
      stem: its last name without the suffix of its kind, for titles.
      uri: where a person finds it.
    """

    path: Path
    name: str
    stem: str
    uri: str
    skipped: Skipped
    reading: Reading = Reading()

    def document(self, text: str, title: str = "") -> Iterator[Document]:
        """The whole file as one document, unless it is empty."""
        if not text or text.isspace():
            self.skipped.add("empty", self.name)
        else:
            yield Document(self.name, text, title or self.stem, self.uri)

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, decompressed and in UTF-8 where they were in UTF-16.

        Raises:
          DamagedFileError, LeftOutError, UnicodeDecodeError, OSError: once all is given
            that could be.
        """
        return encodings.utf8_chunks(compression.chunks(self.path))

    def data(self) -> bytes:
        """All of `chunks`; raises LeftOutError if it is no text or beyond the limit."""
        whole = BytesIO()  # which gives its bytes without a copy
        for chunk in self.chunks():
            if not whole.tell():
                _check_beginning(chunk)
            if b"\0" in chunk:  # before a film or a disk image is in memory
                raise LeftOutError("binary")
            whole.write(chunk)
            if whole.tell() > self.reading.max_document_bytes:
                raise LeftOutError(TOO_LARGE)
        return whole.getvalue()

    def lines(self) -> Iterator[bytes | None]:
        """Lines with their newlines; None for one beyond the limit of a document.

        Splits at newlines only: JSON lines may hold any other line separator.
        """
        return _lines(self.chunks(), self.reading.max_document_bytes)


def _check_beginning(chunk: bytes) -> None:
    beginning = chunk[:4096].lstrip()
    for pattern, reason in _OTHERS:
        if re.match(pattern, beginning, re.DOTALL):
            raise LeftOutError(reason)


def _lines(chunks: Iterable[bytes], max_bytes: int) -> Iterator[bytes | None]:
    rest: list[bytes] = []
    rest_bytes = 0
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest_bytes += len(first)
        if rest_bytes <= max_bytes:
            rest.append(first)
        else:
            rest.clear()
        if others:
            last = others.pop()
            yield b"".join([*rest, b"\n"]) if rest_bytes <= max_bytes else None
            for line in others:
                yield line + b"\n"
            rest, rest_bytes = [last], len(last)
    if rest_bytes:
        yield b"".join(rest) if rest_bytes <= max_bytes else None
