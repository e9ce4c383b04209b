"""Changes a finished database while others read it: add, replace, delete, compact.

Nothing that is there is written over. What is added becomes a delta, what is deleted a row
in a list, and a new version puts both in force at once (`versions.py`). Embedder, tokenizer
and chunk length are the build's.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.database import versions
from data_pipeline.embedding.chunk_vectors import embed_chunks
from data_pipeline.index import lexical, sharded
from data_pipeline.storage.files import make_folder, write_json
from data_pipeline.text import chunks
from data_pipeline.text.documents import Document, write_documents

if TYPE_CHECKING:
    from data_pipeline.database.database import Database

_FIELDS = tuple(field.name for field in dataclasses.fields(Document))


def parse_documents(records: Sequence[Mapping]) -> list[Document]:
    """Documents from mappings with `text` and optional `id`, `title`, `uri`, `licence`.

    A document without an id gets one that is made from its text.

    Raises:
        ValueError: naming the record, for an unknown field, a value that is no string, a
            text without a visible character or that is not Unicode, or an id twice.
    """
    documents: dict[str, Document] = {}
    for number, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise ValueError(  # noqa: TRY004  as for all that is wrong with a record
                f"document {number} is no mapping, but {record!r:.60}"
            )
        where = f"document {number} ({record.get('id', 'without an id')!r})"
        unknown = sorted(set(record) - set(_FIELDS))
        if unknown or "text" not in record:
            problem = f"unknown fields {unknown}" if unknown else "no text"
            raise ValueError(f"{where} has {problem}; known are {', '.join(_FIELDS)}")
        for name, value in record.items():
            if type(value) is not str:
                raise ValueError(f"{where}: {name} must be a string, is {value!r:.60}")
            _check_unicode(where, name, value)
        if not record["text"].strip():
            raise ValueError(f"{where} has a text of white space alone")
        made = hashlib.sha256(record["text"].encode()).hexdigest()[:16]
        document = Document(**{**record, "id": record.get("id", made)})
        if not document.id or document.id in documents:
            problem = "is there twice" if document.id else "is empty"
            raise ValueError(f"{where}: its id {problem}")
        documents[document.id] = document
    return list(documents.values())


def _check_unicode(where: str, name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {name} is not Unicode text ({error})") from error


def add(
    database: "Database", documents: Sequence[Document], *, replace: bool = False
) -> int:
    """Adds documents; with `replace` in place of those of the same ids.

    Returns:
        The number of the new version; of the present one, if there is nothing to do.
    Raises:
        ValueError: if an id is there already (and `replace` is not given).
    """
    with versions.sole_writer(database.folder):
        database.refresh()
        there = [doc.id for doc in documents if database.has_document(doc.id)]
        if there and not replace:
            raise ValueError(
                f"{len(there)} of the documents are in {database.folder} already, first "
                f"{there[0]!r}: replace them, or give other ids"
            )
        if not documents:
            return database.version
        number = next_number(database.folder)
        delta = versions.name_of(number)
        make_folder(
            database.folder / "deltas" / delta,
            lambda folder: _write_delta(database, documents, folder),
        )
        state = database.state
        new = dataclasses.replace(
            state,
            number=number,
            deltas=(*state.deltas, delta),
            deleted_D=np.union1d(state.deleted_D, database.rows_of(there)),
        )
        return show(database, new)


def delete(database: "Database", document_ids: Collection[str]) -> int:
    """Deletes documents; they are never found again. `compact` takes them off the disk.

    Returns:
        The number of the new version; of the present one, if there is nothing to do.
    Raises:
        ValueError: if an id is not in the database; then nothing is deleted.
    """
    if type(document_ids) is str:
        raise ValueError(f"ids of documents must be a list, are {document_ids!r}")
    with versions.sole_writer(database.folder):
        database.refresh()
        rows = database.rows_of(sorted(set(document_ids)))
        if not len(rows):
            return database.version
        number, state = next_number(database.folder), database.state
        deleted_D = np.union1d(state.deleted_D, rows)
        return show(
            database, dataclasses.replace(state, number=number, deleted_D=deleted_D)
        )


def show(database: "Database", new: versions.Version) -> int:
    """Puts a version in force, and shows it."""
    versions.publish(database.folder, new)
    database.refresh()
    return new.number


def next_number(folder: Path) -> int:
    """Of the next version: one that no file of any version has."""
    taken = (int(path.name[:6]) for path in (folder / "versions").glob("[0-9]*"))
    return max(taken, default=0) + 1


def _write_delta(
    opened: "Database", documents: Sequence[Document], folder: Path
) -> None:
    """A shard of every stage, whose rows and ids follow what the database holds."""
    table, first_row = opened.chunks(), opened.documents().num_rows
    write_documents(folder / "documents.parquet", documents, first_row=first_row)
    texts = [document.text for document in documents]
    chunks.write_shard(texts, first_row, opened.tokenizer, opened.chunk_len, folder)
    added = chunks.ChunkTable([folder])
    tokens_TM = added.take("tokens", np.arange(len(added)))
    vectors_TW = embed_chunks(tokens_TM, opened.tokenizer, opened.embedder)
    np.save(folder / "vectors.npy", vectors_TW, allow_pickle=False)
    has_text_T = added.has_text(range(len(added)))
    write_index(
        opened,
        len(table) + np.flatnonzero(has_text_T),
        lexical.texts_of(added, np.flatnonzero(has_text_T), opened.tokenizer),
        vectors_TW[has_text_T],
        folder,
    )


def write_index(
    opened: "Database",
    ids_T: np.ndarray,
    texts: Iterable[str],
    vectors_TW: np.ndarray,
    folder: Path,
) -> None:
    """An index as the build would make it, of words too if it did, into a folder."""
    settings = opened.manifest["settings"]
    shard, facts, _ = sharded.build_shard(
        ids_T,
        vectors_TW.astype(np.float32),
        settings["index"],
        recall_target=settings["recall_target"],
        queries_QW=np.zeros((0, vectors_TW.shape[1]), np.float32),
        scratch=folder,
    )
    shard.save(folder)
    write_json(folder / "facts.json", facts)
    if opened.has_words:
        (folder / "lexical").mkdir()
        lexical.write_shard(folder / "lexical", ids_T, texts)
