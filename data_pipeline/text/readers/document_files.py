"""Which reader a file of documents needs, by its suffix.

Called by `corpora`. Each reader yields what is usable and counts the rest by name; a
fault in the data is never an exception.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipeline.text.documents import Document, Skipped, printable
from data_pipeline.text.readers import (
    compression,
    office_files,
    plain_text,
    records,
    web_pages,
)
from data_pipeline.text.readers.compression import DamagedFileError, LeftOutError
from data_pipeline.text.readers.source_file import OF_THE_SYSTEM, Reading, SourceFile

Reader = Callable[[SourceFile], Iterator[Document]]


def _left_out(reason: str) -> Reader:
    def count(file: SourceFile) -> Iterator[Document]:
        file.skipped.add(reason, file.name)
        yield from ()

    return count


# Suffix -> reader. What has another suffix in a folder is read as text, if it is text.
READERS: dict[str, Reader] = {
    **dict.fromkeys(
        (".txt", ".text", ".md", ".rst", ".py", ".tex"), plain_text.read_text
    ),
    **dict.fromkeys((".html", ".htm", ".xhtml", ".xml"), web_pages.read_html),
    **dict.fromkeys((".jsonl", ".ndjson"), records.read_json_lines),
    ".json": records.read_json,
    **dict.fromkeys((".csv", ".tsv"), records.read_csv),
    ".parquet": records.read_parquet,
    ".ipynb": plain_text.read_notebook,
    ".pdf": office_files.read_pdf,
    ".docx": office_files.read_docx,
}
# Readers that open a file by themselves, which must not be compressed.
_UNCOMPRESSED = (".parquet", ".pdf", ".docx")
# Known, but not read.
_OTHERS: dict[str, Reader] = {
    **dict.fromkeys(
        (".mbox", ".eml", ".msg"), _left_out("mail (save its messages as text)")
    ),
    **dict.fromkeys(
        (".doc", ".odt", ".rtf", ".epub", ".ppt", ".pptx", ".odp"),
        _left_out("office file of another kind (save it as text, HTML, .docx or PDF)"),
    ),
    **dict.fromkeys(
        (".xls", ".xlsx", ".ods"), _left_out("spreadsheet (save it as .csv)")
    ),
    **dict.fromkeys(
        (".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".br", ".z"),
        _left_out("archive (unpack it)"),
    ),
    ".map": _left_out("text for machines"),
}


def kind(path: Path) -> str:
    """The suffix by which a file that can be a corpus by itself is read; else ""."""
    suffix = _suffix(path)
    return suffix if suffix in READERS else ""


def read_file(
    path: Path,
    name: str,
    skipped: Skipped,
    reading: Reading = Reading(),  # noqa: B008  frozen
) -> Iterator[Document]:
    """Reads the documents of one file, whatever its format.

    Args:
      path: the file; of unknown kind, it is read as text.
      name: what to call it in ids of text and in `skipped`: its path in the corpus.
      skipped: receives what could not be used.
      reading: how the user wants it read.
    Raises:
      OSError: if the system is out of memory or of descriptors, which is no file's fault.
    """
    suffix = _suffix(path)
    reader = READERS.get(suffix) or _OTHERS.get(suffix, plain_text.read_text)
    stem = _stem(name, suffix)
    file = SourceFile(path, name, stem, printable(path), skipped, reading)
    left_out_before, has_text = skipped.total, False
    try:
        for document in reader(file):
            has_text = True
            yield document
        if not has_text and skipped.total == left_out_before:
            skipped.add("empty", name)  # such as a table of no rows
    except DamagedFileError:
        skipped.add("damaged", name)
    except LeftOutError as error:
        skipped.add(str(error), name)
    except MemoryError:
        skipped.add("too large for the memory", name)
    except UnicodeDecodeError:
        skipped.add("undecodable", name)
    except OSError as error:
        if error.errno in OF_THE_SYSTEM:
            raise
        # Arrow's have no number: they tell of the file's contents.
        skipped.add("unreadable" if error.errno else "damaged", name)


def _suffix(path: Path) -> str:
    """The suffix of its kind, in small letters, without that of its compression."""
    name = path.name.lower()
    for compression_suffix in compression.SUFFIXES:
        name = name.removesuffix(compression_suffix)
    suffix = Path(name).suffix
    return "" if suffix in _UNCOMPRESSED and name != path.name.lower() else suffix


def _stem(name: str, suffix: str) -> str:
    """The last part of its path in the corpus without the suffixes that are known."""
    stem = last = name.rpartition("/")[2]
    for known in (*compression.SUFFIXES, *([suffix] if suffix in READERS else [])):
        if stem.lower().endswith(known):
            stem = stem[: -len(known)]
    return stem or last
