"""Corpora: the user's text, wherever it is, as a stream of documents.

Called by the database build and by its updates. The one thing to know: a fault in the
data is counted by name in `Skipped` and never ends a run; a fault in what was asked for
(no such folder, an unknown kind of file) raises at once.
"""

import dataclasses
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.config import INSTALLED_CORPORA, PYTHON_CORPUS
from data_pipeline.storage.extras import install_command
from data_pipeline.storage.files import fingerprint
from data_pipeline.text.documents import Document, Skipped, printable
from data_pipeline.text.readers import (
    compression,
    document_files,
    factbook,
    folders,
    records,
)
from data_pipeline.text.readers.source_file import Reading

__all__ = ["Document", "Reading", "Skipped", "read_documents"]

# Files that are read together, in order; none: the corpus can't be taken apart.
Part = tuple[Path, ...]

ACCEPTED = (
    'accepted are "factbook" (the World Factbook), "python" (the text of this Python'
    " installation), a folder, a file"
    f" ({' '.join(document_files.READERS)}; most also with"
    f" {' '.join(compression.SUFFIXES)}),"
    " tfds:NAME[/CONFIG][:SPLIT] and hf:NAME[,CONFIG][:SPLIT]"
)

_READING = Reading()
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def read_documents(
    corpus: str,
    skipped: Skipped,
    *,
    max_size_bytes: int | None = None,
    reading: Reading = _READING,
) -> Iterator[Document]:
    """Reads the documents of a corpus as a stream, in the same order every time.

    A folder is read with all below it, sorted by path: every file by the reader of its
    suffix, and every other one that is text as one document (WikiText as its articles);
    hidden files are passed over. Records have the field `text` and may have `id`, `title`,
    `uri`, `licence`. The second document of an id gets "#2" added.

    Args:
      corpus: what `ACCEPTED` says; "" is "python".
      skipped: receives what could not be used, as the stream is read.
      max_size_bytes: ends the stream once so many UTF-8 bytes of text were given; the
        size of the sample of this Python's text. None for all.
      reading: which field holds the text of a record, and what is too large.
    Returns:
      Documents with unique ids and with text that is not empty.
    Raises:
      FileNotFoundError: at once, if the path does not exist.
      ValueError: at once, if the corpus is of no known kind; at the end of the stream,
        if nothing usable was in it.
      ImportError: at once, if a library that the corpus needs is not installed.
    Source: ours; the paper's MassiveText is not public.
    """
    if max_size_bytes is not None and max_size_bytes < 1:
        raise ValueError(
            f"max_size_bytes={max_size_bytes}: must be at least 1, or None"
        )
    documents = _open_corpus(corpus, skipped, max_size_bytes, reading)
    limited = _limited(_with_unique_ids(documents), max_size_bytes)
    return _require_some(limited, corpus, skipped)


def parts(corpus: str, skipped: Skipped, size_bytes: int) -> list[Part]:
    """The parts that `read_part` reads one by one; together they are the corpus.

    A folder has a part for about every `size_bytes` of its files; all else is one. What
    can't be looked into is added to `skipped`.
    """
    if corpus in INSTALLED_CORPORA or not Path(corpus).is_dir():
        return [()]
    found: list[list[Path]] = []
    left_bytes = 0
    for path, status in folders.files(Path(corpus), skipped):
        if left_bytes <= 0:
            found.append([])
            left_bytes = size_bytes
        found[-1].append(path)
        left_bytes -= status.st_size
    return [tuple(files) for files in found]


def file_sizes(corpus: str, parts: Iterable[Part]) -> list[int]:
    """Bytes of each file of a corpus; none, if it does not consist of the user's files."""
    if corpus in INSTALLED_CORPORA or not Path(corpus).exists():
        return []
    files = [path for part in parts for path in part] or [Path(corpus)]
    return [path.stat().st_size for path in files if path.is_file()]


def read_part(
    corpus: str,
    part: Part,
    skipped: Skipped,
    max_size_bytes: int | None = None,
    reading: Reading = _READING,
) -> Iterator[Document]:
    """Reads a part as `read_documents` does all, but ids are as they are found.

    Raises:
      FileNotFoundError: also if a folder is not there, as on another machine.
    """
    if not part:
        documents = _open_corpus(corpus, skipped, max_size_bytes, reading)
        return _limited(documents, max_size_bytes)
    if not Path(corpus).is_dir():
        raise FileNotFoundError(
            f"corpus {corpus!r} is not there on a machine that reads a part of it: give"
            " an absolute path that all of them share"
        )
    return _read_files(Path(corpus), part, skipped, reading)


def _open_corpus(
    corpus: str, skipped: Skipped, max_size_bytes: int | None, reading: Reading
) -> Iterator[Document]:
    if corpus == "factbook":
        return factbook.read_documents(skipped)
    if corpus in PYTHON_CORPUS:
        from data_pipeline.text.readers import python_corpus

        return python_corpus.read_documents(skipped, max_size_bytes=max_size_bytes)
    path = Path(corpus)
    if not path.exists():
        scheme, colon, name = corpus.partition(":")
        if colon and scheme == "tfds":
            return _open_tfds(name, skipped, reading)
        if colon and scheme == "hf":
            return _open_hugging_face(name, skipped, reading)
        if colon and scheme.isalnum():
            raise ValueError(
                f"corpus {corpus!r}: unknown scheme {scheme!r}; {ACCEPTED}"
            )
        raise FileNotFoundError(f"corpus {corpus!r}: no such path; {ACCEPTED}")
    if path.is_dir():
        paths = [found for found, _ in folders.files(path, skipped)]
        return _read_files(path, paths, skipped, reading)
    if not path.is_file() or not document_files.kind(path):
        raise ValueError(f"corpus {corpus!r}: unknown kind of file; {ACCEPTED}")
    name = printable(Path(path.name))
    return document_files.read_file(path, name, skipped, reading)


def _read_files(
    folder: Path, paths: Iterable[Path], skipped: Skipped, reading: Reading
) -> Iterator[Document]:
    for path in paths:
        name = printable(path.relative_to(folder))
        yield from document_files.read_file(path, name, skipped, reading)


class _UniqueIds:
    """Makes ids unique, one after the other."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def __call__(self, given: str) -> str:
        unique = given
        while unique in self._seen:
            self._seen[given] += 1
            unique = f"{given}#{self._seen[given]}"
        self._seen[unique] = 1
        return unique


def unique_ids(ids: Iterable[str]) -> list[str]:
    """Ids of documents in the order they are read, as `read_documents` gives them."""
    return list(map(_UniqueIds(), ids))


def _with_unique_ids(documents: Iterable[Document]) -> Iterator[Document]:
    unique = _UniqueIds()
    for document in documents:
        yield dataclasses.replace(document, id=unique(document.id))


def _limited(
    documents: Iterable[Document], max_size_bytes: int | None
) -> Iterator[Document]:
    size_bytes = 0
    for document in documents:
        yield document
        size_bytes += len(document.text.encode())
        if max_size_bytes is not None and size_bytes >= max_size_bytes:
            return


def _require_some(
    documents: Iterable[Document], corpus: str, skipped: Skipped
) -> Iterator[Document]:
    some = False
    for document in documents:
        some = True
        yield document
    if not some:
        raise no_usable_text(corpus, skipped)


def no_usable_text(corpus: str, skipped: Skipped) -> ValueError:
    """The error of a corpus without a document."""
    why = "; ".join(skipped.summary_lines()) or "it is empty"
    return ValueError(f"corpus {corpus or 'python'!r} holds no usable text ({why})")


def _open_tfds(name: str, skipped: Skipped, reading: Reading) -> Iterator[Document]:
    """Opens NAME[/CONFIG][:VERSION][:SPLIT]; TFDS_DATA_DIR says where the data are."""
    import tensorflow_datasets as tfds

    builder_name, split = _split_name(name)
    try:
        builder = tfds.builder(builder_name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ValueError(f"corpus 'tfds:{name}': no such TFDS dataset") from error
    features = builder.info.features
    wanted = records.text_columns(reading)
    if not any(known in features and _is_string(features[known]) for known in wanted):
        raise ValueError(_no_feature(f"tfds:{name}", wanted, features))
    builder.download_and_prepare()  # returns at once when the data are there
    if split not in builder.info.splits:
        raise ValueError(
            f"corpus 'tfds:{name}': no split {split!r}; its splits are"
            f" {sorted(builder.info.splits)}"
        )
    rows = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
    return _records(rows, f"{builder_name}/{split}", f"tfds:{name}", skipped, reading)


def _is_string(feature: Any) -> bool:
    """A list of strings and a nested feature have another shape."""
    return feature.shape == () and np.dtype(feature.np_dtype) == object


def _open_hugging_face(
    name: str, skipped: Skipped, reading: Reading
) -> Iterator[Document]:
    """Opens NAME[,CONFIG][:SPLIT] as a stream."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"corpus 'hf:{name}' needs the datasets library: {install_command('hf')}"
        ) from error
    dataset_name, split = _split_name(name)
    path, _, config = dataset_name.partition(",")
    rows = datasets.load_dataset(path, config or None, split=split, streaming=True)
    features = rows.features  # None where only the data tell
    wanted = records.text_columns(reading)
    if features is not None and not any(known in features for known in wanted):
        raise ValueError(_no_feature(f"hf:{name}", wanted, features))
    return _records(rows, f"{dataset_name}/{split}", f"hf:{name}", skipped, reading)


def _split_name(name: str) -> tuple[str, str]:
    """Takes the split off; a last part like "1.0.0" is a version, not a split."""
    dataset, colon, split = name.rpartition(":")
    if not colon or _VERSION.fullmatch(split):
        return name, "train"
    return dataset, split


def _records(
    rows: Iterable[Mapping[str, Any]],
    name: str,
    uri: str,
    skipped: Skipped,
    reading: Reading,
) -> Iterator[Document]:
    for number, row in enumerate(rows):
        # numpy scalars hide their kind from `document_of`.
        fields = {k: v.item() if hasattr(v, "item") else v for k, v in row.items()}
        at = f"{name}:{number}"
        yield from records.document_of(fields, at, uri, at, skipped, reading)


def _no_feature(corpus: str, wanted: Iterable[str], features: Iterable[str]) -> str:
    return (
        f"corpus {corpus!r}: no feature of text is called {' or '.join(wanted)}; its"
        f" features are {sorted(features)}: name one by data.text_column"
    )


def identity(corpus: str) -> dict:
    """The identity of a corpus: whether it is still the one that was read.

    For files that are read their names, sizes and times of change (that of the inode too,
    which nobody can set back); for the World Factbook the contents of its files; for this
    Python's own text the versions of what is installed; for a named dataset its name.
    """
    if corpus == "factbook" and (data := factbook.folder()):
        return {"factbook": factbook.digest(data)}
    if corpus in PYTHON_CORPUS:
        installed = sorted(
            f"{found.metadata['Name']}=={found.version}"
            for found in metadata.distributions()
            # A build may leave its own metadata in a clone; its text is not read.
            if found.metadata["Name"] != "retro-jax"
        )
        return {
            "python": platform.python_version(),
            "installed": fingerprint(installed),
        }
    path = Path(corpus)
    # tfds:NAME, hf:NAME, or what is missing, which the reader explains.
    if corpus in INSTALLED_CORPORA or not path.exists():
        return {"corpus": corpus}
    files = [(path, path.stat())]
    if path.is_dir():
        files = folders.files(path, Skipped())
    listing = [
        [
            str(file.relative_to(path)),
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
        ]
        for file, found in files
    ]
    return {"files": fingerprint(listing)}
