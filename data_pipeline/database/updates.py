"""Changes a finished database while others read it: adds, replaces and deletes documents.

Nothing that is there is written over. What is added becomes a delta, what is deleted a row
in a list, and a new version puts both in force at once (`versions.py`). Embedder, tokenizer
and chunk length are the build's.

Letters here: D documents.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float16

from data_pipeline.database import versions
from data_pipeline.database.snapshot import Snapshot
from data_pipeline.embedding.chunk_vectors import embed_chunks
from data_pipeline.index import lexical, sharded
from data_pipeline.storage.files import make_folder, write_json
from data_pipeline.text import chunks
from data_pipeline.text.documents import FIELDS, Document, write_documents


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
        unknown = sorted(set(record) - set(FIELDS))
        if unknown or "text" not in record:
            problem = f"unknown fields {unknown}" if unknown else "no text"
            raise ValueError(f"{where} has {problem}; known are {', '.join(FIELDS)}")
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
    snapshot: Snapshot, documents: Sequence[Document], *, replace: bool = False
) -> Snapshot:
    """Adds documents to the version in force; with `replace` in place of the same ids.

    Returns:
        The new version, which is in force; the one before, if there is nothing to do.
    Raises:
        ValueError: if an id is there already (and `replace` is not given).
    """
    with versions.sole_writer(snapshot.folder):
        snapshot = snapshot.at()  # another process may have changed it
        there = [doc.id for doc in documents if snapshot.has_document(doc.id)]
        if there and not replace:
            raise ValueError(
                f"{len(there)} of the documents are in {snapshot.folder} already, first "
                f"{there[0]!r}: replace them, or give other ids"
            )
        if not documents:
            return snapshot
        number, state = versions.next_number(snapshot.folder), snapshot.state
        delta = versions.name_of(number)
        make_folder(
            snapshot.folder / "deltas" / delta,
            lambda folder: _write_delta(snapshot, documents, folder),
        )
        new = dataclasses.replace(
            state,
            number=number,
            deltas=(*state.deltas, delta),
            deleted_D=np.union1d(state.deleted_D, snapshot.rows_of(there)),
        )
        versions.publish(snapshot.folder, new)
        return snapshot.at()


def delete(snapshot: Snapshot, document_ids: Collection[str]) -> Snapshot:
    """Deletes documents; they are never found again. `compact` takes them off the disk.

    Returns:
        The new version, which is in force; the one before, if there is nothing to do.
    Raises:
        ValueError: if an id is not in the database; then nothing is deleted.
    """
    if type(document_ids) is str:
        raise ValueError(f"ids of documents must be a list, are {document_ids!r}")
    with versions.sole_writer(snapshot.folder):
        snapshot = snapshot.at()  # another process may have changed it
        rows_D = snapshot.rows_of(sorted(set(document_ids)))
        if len(rows_D):
            new = dataclasses.replace(
                snapshot.state,
                number=versions.next_number(snapshot.folder),
                deleted_D=np.union1d(snapshot.state.deleted_D, rows_D),
            )
            versions.publish(snapshot.folder, new)
        return snapshot.at()


def _write_delta(
    snapshot: Snapshot, documents: Sequence[Document], folder: Path
) -> None:
    """A shard of every stage, whose rows and ids follow what the database holds."""
    table, first_row = snapshot.chunks(), snapshot.documents().num_rows
    tokenizer = snapshot.tokenizer
    write_documents(folder / "documents.parquet", documents, first_row=first_row)
    texts = [document.text for document in documents]
    chunks.write_shard(texts, first_row, tokenizer, snapshot.chunk_len, folder)
    added = chunks.ChunkTable([folder])
    tokens_TM = added.take("tokens", np.arange(len(added)))
    vectors_TW = embed_chunks(tokens_TM, tokenizer, snapshot.embedder)
    np.save(folder / "vectors.npy", vectors_TW, allow_pickle=False)
    write_index_of_delta(snapshot, added, len(table), vectors_TW, folder)


def write_index_of_delta(
    snapshot: Snapshot,
    added: chunks.ChunkTable,
    first_id: int,
    vectors_TW: Float16[np.ndarray, "T W"],
    folder: Path,
) -> None:
    """An index of the chunks of a delta that have text, as `write_index`.

    Args:
        first_id: the id of the delta's first chunk.
    """
    rows_T = np.flatnonzero(added.has_text(range(len(added))))
    texts = lexical.texts_of(added, rows_T, snapshot.tokenizer)
    write_index(snapshot.manifest, first_id + rows_T, texts, vectors_TW[rows_T], folder)


def write_index(
    manifest: Mapping,
    ids_T: np.ndarray,
    texts: Iterable[str],
    vectors_TW: np.ndarray,
    folder: Path,
) -> None:
    """An index as the build would make it, of words too if it did, into a folder."""
    settings = manifest["settings"]
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
    if "lexical" in manifest["contents"]:
        (folder / "lexical").mkdir()
        lexical.write_shard(folder / "lexical", ids_T, texts)
