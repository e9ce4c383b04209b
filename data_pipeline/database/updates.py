"""Changes a finished database while others read it: adds, replaces and deletes documents.

Nothing that is there is written over. What is added becomes a delta, what is deleted a row
in a list, and a new version puts both in force at once (`versions.py`). Where there would be
many deltas some are merged first (`deltas.py`). Embedder, tokenizer and chunk length are
the build's.

Letters here: D documents.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from data_pipeline.database import arguments, deltas, versions
from data_pipeline.database.snapshot import Snapshot
from data_pipeline.database.versions import HELD_OUT
from data_pipeline.storage.files import make_folder
from data_pipeline.text.documents import FIELDS, Document


def parse_documents(records: Sequence[Mapping]) -> list[Document]:
    """Documents from mappings with `text` and optional `id`, `title`, `uri`, `licence`.

    A document without an id gets one that is made from its text.

    Raises:
        ValueError: naming the record, for an unknown field, a value that is no string, a
            text without a visible character or that is not Unicode, or an id twice.
    """
    arguments.check_list(records, "documents")
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
            lambda folder: deltas.write(snapshot, documents, folder),
        )
        new = dataclasses.replace(
            state,
            number=number,
            deltas=(*deltas.merged(snapshot, f"{delta}-merged"), delta),
            deleted_D=np.union1d(state.deleted_D, snapshot.rows_of(there)),
        )
        versions.publish(snapshot.folder, new)
        return snapshot.at()


def delete(snapshot: Snapshot, document_ids: Collection[str]) -> Snapshot:
    """Deletes documents of any split: they are never found, trained with or scored again.

    `compact` takes them off the disk.

    Returns:
        The new version, which is in force; the one before, if there is nothing to do.
    Raises:
        ValueError: if an id is not in the database; then nothing is deleted.
    """
    arguments.check_strings(document_ids, "ids of documents")
    with versions.sole_writer(snapshot.folder):
        snapshot = snapshot.at()  # another process may have changed it
        state, names = snapshot.state, sorted(set(document_ids))
        held_out = {
            split: [name for name in names if snapshot.has_document(name, split)]
            for split in HELD_OUT
        }
        others = set(names).difference(*held_out.values())
        train = [n for n in names if n in others or snapshot.has_document(n)]
        deleted_D = np.union1d(state.deleted_D, snapshot.rows_of(train))
        if names:
            new = dataclasses.replace(
                state,
                number=versions.next_number(snapshot.folder),
                deleted_D=deleted_D,
                held_out={
                    split: np.union1d(
                        state.deleted(split), snapshot.rows_of(ids, split)
                    ).tolist()
                    for split, ids in held_out.items()
                },
            )
            versions.publish(snapshot.folder, new)
        return snapshot.at()
