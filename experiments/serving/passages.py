"""The passages that a server reads and shows, of a database that may change meanwhile.

A row or a chunk's number may mean something else in another version of the database. So what
a text has read is looked up in the version that it was found in, by a ticket.
"""

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipeline.database import Database, Found, excerpts, updates
from experiments.jobs import continuations, reading
from experiments.jobs.remote_database import RemoteDatabase
from experiments.serving.refusals import RefusalError
from retro_jax import generation

_MOST_TICKETS = 100_000  # far more than all texts under way have read


class Passages:
    """A database, or a service in place of one, as a server uses it.

    Attributes:
        can_change: whether documents may be added, replaced and deleted.
    """

    def __init__(
        self,
        database: Database | RemoteDatabase,
        limits: reading.Limits = reading.ALL,
        *,
        can_change: bool = False,
    ):
        """Reads what is within the limits of a database."""
        self._database, self._limits = database, limits
        self.can_change = can_change and isinstance(database, Database)
        self._tickets: collections.OrderedDict[int, tuple[Any, int]] = (
            collections.OrderedDict()
        )
        self._num_tickets = 0
        self._writer = threading.Lock()

    def description(self) -> dict:
        """What database this is, as JSON."""
        view = self._view()
        told: dict = {"fingerprint": view.fingerprint}
        if isinstance(view, Database):
            snapshot = view.snapshot
            rows = snapshot.documents().num_rows
            deleted = snapshot.state.is_deleted(np.arange(rows)).sum()
            told |= {
                "version": view.version,
                "documents": int(rows - deleted),
                "chunks": len(snapshot.chunks()),
            }
        return told

    def refresh(self) -> None:
        """Shows the version that is in force now: another process may have made one."""
        if isinstance(self._database, Database):
            with self._writer:
                self._database.refresh()

    def retrieve(
        self, tokens_QM: Int[np.ndarray, "Q M"], num_neighbours: int
    ) -> reading.Found:
        """Neighbours of chunks for generation, with tickets as their ids."""
        view = self._view()
        near = reading.NearRetriever(view, self._limits)
        try:
            found = near.retrieve(tokens_QM, num_neighbours)
        except Exception as error:
            # Whatever is wrong with a database costs a text its sources, not its end.
            raise ConnectionError(f"nothing was retrieved: {error}") from error
        tickets_QN = np.full_like(found.chunk_ids_QN, -1)
        for place, chunk_id in np.ndenumerate(found.chunk_ids_QN):
            if chunk_id >= 0:
                tickets_QN[place] = self._ticket(view, int(chunk_id))
        return dataclasses.replace(found, chunk_ids_QN=tickets_QN)

    def _ticket(self, view: Any, chunk_id: int) -> int:
        self._num_tickets += 1
        self._tickets[self._num_tickets] = (view, chunk_id)
        if len(self._tickets) > _MOST_TICKETS:
            self._tickets.popitem(last=False)
        return self._num_tickets

    def read(self, source: generation.Source, text: str) -> list[dict]:
        """The passages of a source and what speaks for them, as JSON.

        Args:
            text: what was said while they stood open.
        """
        found = []
        for place, ticket in enumerate(source.chunk_ids_N):
            if ticket < 0 or int(ticket) not in self._tickets:
                continue
            view, chunk_id = self._tickets[int(ticket)]
            passage = view.found(chunk_id, float(source.distances_N[place]))
            attention_N, effects_N = source.attention_N, source.effects_N
            found.append(
                _record(passage, view)
                | {
                    "attention": None
                    if attention_N is None
                    else float(attention_N[place]),
                    "effect": None if effects_N is None else float(effects_N[place]),
                    "verbatim": continuations.shared(
                        text, passage.text + passage.continuation
                    ),
                }
            )
        return found

    def search(self, query: str, k: int, rank: str, max_distance: float) -> list[dict]:
        """The passages that are nearest to a text, as JSON.

        Raises:
            RefusalError: for a query that can't be searched for.
        """
        view = self._view()
        if rank != "dense" and not isinstance(view, Database):
            raise RefusalError("rank must be dense with a service", param="rank")
        ranked = {} if rank == "dense" else {"rank": rank}
        try:
            (found,) = view.search([query], k, **ranked)
        except ValueError as error:
            raise RefusalError(str(error), code="invalid_value") from error
        return [_record(each, view) for each in found if each.distance <= max_distance]

    def passage(self, chunk_id: int) -> dict:
        """A passage with the text around it, as JSON.

        Raises:
            RefusalError: if there is none, or its document is deleted.
        """
        view = self._folder()
        snapshot, missing = view.snapshot, _missing("passage", str(chunk_id))
        if not 0 <= chunk_id < len(snapshot.chunks()):
            raise missing
        row = snapshot.chunks().take("documents", np.array([chunk_id]))
        if snapshot.state.is_deleted(row).any():
            raise missing
        around = excerpts.excerpt_at(snapshot, chunk_id)
        more = {"distance": None, "before": around.before, "after": around.after}
        return {"object": "passage", **_record(view.found(chunk_id), view), **more}

    def document(self, document_id: str) -> dict:
        """A document with its whole text, as JSON.

        Raises:
            RefusalError: if it is not there, or was deleted.
        """
        snapshot = self._folder().snapshot
        if not snapshot.has_document(document_id):
            raise _missing("document", document_id)
        (row,) = snapshot.rows_of([document_id])
        (told,) = snapshot.documents().slice(int(row), 1).to_pylist()
        # A document's chunks follow one another.
        first, end = np.searchsorted(snapshot.document_of_chunk, [row, row + 1])
        tokens = snapshot.chunks().take("tokens", np.arange(first, end)).reshape(-1)
        named = {name: told.get(name) or "" for name in ("title", "uri", "licence")}
        return {
            "object": "document",
            "id": document_id,
            **named,
            "text": snapshot.tokenizer.decode(tokens),
            "version": snapshot.version,
        }

    def check_changes(self) -> None:
        """Raises RefusalError if documents can't be changed."""
        self._open_to_changes()

    def add(self, documents: Sequence[dict]) -> dict:
        """Adds documents.

        Raises:
            RefusalError: if documents can't be changed, or one of these is none, or there.
        """
        return self._change(documents, self._open_to_changes().add)

    def replace(self, document: dict) -> dict:
        """Puts a document in the place of that with the same id, if there is one.

        Raises as `add`.
        """
        return self._change([document], self._open_to_changes().replace)

    def _change(
        self, documents: Sequence[dict], change: Callable[[Sequence[dict]], int]
    ) -> dict:
        database = self._open_to_changes()
        with self._writer:
            before = database.version
            try:
                ids = [parsed.id for parsed in updates.parse_documents(documents)]
                version = change(documents)
            except ValueError as error:
                is_there = "in" in str(error) and "already" in str(error)
                raise RefusalError(
                    str(error).replace(str(database.folder), "the database"),
                    status=409 if is_there else 400,
                    param="documents",
                    code="document_exists" if is_there else "invalid_value",
                ) from error
        return _changed(version, ids, is_new=version != before)

    def delete(self, document_id: str) -> dict:
        """Deletes a document: it is never found again.

        Raises:
            RefusalError: if documents can't be changed, or this one is not there.
        """
        database = self._open_to_changes()
        with self._writer:
            database.refresh()
            if not database.snapshot.has_document(document_id):
                raise _missing("document", document_id)
            version = database.delete([document_id])
        return _changed(version, [document_id], is_new=True, deleted=True)

    def _view(self) -> Any:
        """One version, even if another is shown meanwhile."""
        if isinstance(self._database, Database):
            return Database(self._database.snapshot)
        return self._database

    def _folder(self) -> Database:
        view = self._view()
        if not isinstance(view, Database):
            raise RefusalError(
                "the database is a service, which only searches", status=404
            )
        return view

    def _open_to_changes(self) -> Database:
        if not self.can_change or not isinstance(self._database, Database):
            raise RefusalError(
                "documents can't be changed here: start the server with --documents and "
                "the database's folder",
                status=403,
                code="documents_disabled",
            )
        return self._database


def _changed(
    version: int, ids: list[str], *, is_new: bool, deleted: bool = False
) -> dict:
    return {
        "object": "documents",
        "version": version,
        "changed": is_new,
        "ids": ids,
        "deleted": deleted,
    }


def _record(found: Found, view: Any) -> dict:
    """A passage as JSON, with the version of the database that it stands in."""
    return {**dataclasses.asdict(found), "version": getattr(view, "version", None)}


def _missing(what: str, name: str) -> RefusalError:
    return RefusalError(
        f"there is no {what} {name!r:.200}", status=404, code="not_found"
    )
