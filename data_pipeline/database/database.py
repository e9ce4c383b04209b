"""The database as its users see it: open it, search it, change it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Integer

from data_pipeline.database import (
    arguments,
    compaction,
    integrity,
    manifest,
    results,
    search,
    updates,
    versions,
)
from data_pipeline.database.results import Found, Retrieved
from data_pipeline.database.snapshot import Snapshot
from data_pipeline.embedding.embedder import Embedder
from data_pipeline.text.tokenizer import Tokenizer


class Database:
    """An open database. It shows one version, until it is changed through it or refreshed.

    Searches under way go on in the version they began with.

    Attributes:
        snapshot: the version that is shown, with all that is open of it.
        folder: the database's.
        manifest: what the build says of it.
        chunk_len: M, tokens of a chunk.
    """

    def __init__(self, snapshot: Snapshot):
        """Shows a snapshot; see `open`."""
        self.snapshot = snapshot
        # In all versions of a database these are the same.
        self.folder, self.manifest = snapshot.folder, snapshot.manifest
        self.chunk_len = snapshot.chunk_len

    @classmethod
    def open(cls, folder: str | Path, version: int | None = None) -> "Database":
        """Opens a finished database.

        Args:
            version: its number; the one in force, if not given.
        Raises:
            ValueError: if there is none, or none of that version or this format, a later
                build was broken off, a file is missing or damaged; says what to do.
        """
        return cls(Snapshot.open(folder, version))

    @property
    def version(self) -> int:
        """Number of the version that is shown; 0 is the build."""
        return self.snapshot.version

    @property
    def fingerprint(self) -> str:
        """Changes when any content of the database changes."""
        return self.snapshot.fingerprint

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that every token of the database is of."""
        return self.snapshot.tokenizer

    @property
    def embedder(self) -> Embedder:
        """The embedder of the index; ValueError if its weights are not the same now."""
        return self.snapshot.embedder

    def refresh(self) -> bool:
        """Shows the version that is in force now; whether it is another than before."""
        before, self.snapshot = self.snapshot, self.snapshot.at()
        return self.snapshot is not before

    def beside(self, version: int | None = None) -> "Database":
        """A version, the one in force if none is given, opened beside this one.

        This one goes on showing its own. What both have in common is shared and not checked
        again. It is this one itself, if it shows that version. Raises as `open`.
        """
        before = self.snapshot
        state = versions.read(self.folder, manifest.read(self.folder), version)
        if state.number == before.version:
            return self
        integrity.check_quickly(self.folder, state, since=before.state)
        return Database(before.at(state))

    def add(self, documents: Sequence[Mapping]) -> int:
        """Adds documents: mappings with `text`, and `id`, `title`, `uri`, `licence`.

        Returns:
            The number of the new version, which is shown from now on.
        Raises:
            ValueError: naming the document that is not one, or that is there already.
        """
        parsed = updates.parse_documents(documents)
        return self._change(lambda: updates.add(self.snapshot, parsed))

    def replace(self, documents: Sequence[Mapping]) -> int:
        """Adds documents in place of those with the same ids, if there are any."""
        parsed = updates.parse_documents(documents)
        return self._change(lambda: updates.add(self.snapshot, parsed, replace=True))

    def delete(self, document_ids: Collection[str]) -> int:
        """Deletes documents by id, held-out ones too; they are never found again.

        Returns as `add`.

        Raises:
            ValueError: if one is not in the database; then none is deleted.
        """
        return self._change(lambda: updates.delete(self.snapshot, document_ids))

    def compact(self) -> int:
        """Merges what was added and takes deleted text off the disk.

        Older versions can't be opened any more. A build makes only the training sequences
        again in this folder.
        Returns as `add`.
        """
        return self._change(lambda: compaction.compact(self.snapshot))

    def _change(self, change: Callable[[], Snapshot]) -> int:
        self.snapshot = change()
        return self.version

    def search(
        self,
        texts: Sequence[str],
        k: int,
        *,
        exclude_documents: Collection[str] = (),
        rank: str = "dense",
    ) -> list[list[Found]]:
        """The k nearest passages of each text, best first; fewer if there are fewer.

        Args:
            texts: queries of any length; what exceeds the embedder's window is cut.
            exclude_documents: ids of documents that must not be found.
            rank: "dense", by distance, or "hybrid", by distance and words (`search.py`).
        Raises:
            ValueError: if `texts` is one text, or one of them is empty or holds NUL; if k
                is not positive, an id or the words are not in the database.
        """
        arguments.check_queries(texts)
        snapshot = self.snapshot  # one version, even if another is shown meanwhile
        ids_QN, distances_QN = search.search(
            snapshot, texts, k, exclude_documents, rank
        )
        return results.found_at(snapshot, ids_QN, distances_QN)

    def retrieve(
        self,
        tokens_QM: Integer[np.ndarray, "Q M"],
        num_neighbours: int,
        *,
        neighbour_len: int | None = None,
        exclude_documents: Collection[str] = (),
        rank: str = "dense",
    ) -> Retrieved:
        """Neighbours of chunks, as a Retriever of `retro_jax/generation` gives them.

        Chunks are turned into text and embedded by the database's embedder.

        Args:
            tokens_QM: token ids of whole chunks.
            num_neighbours: N.
            neighbour_len: R; match and one continuation, if not given.
            exclude_documents, rank: see `search`.
        Raises:
            ValueError: for what are no tokens or no numbers of passages and tokens.
        """
        snapshot = self.snapshot  # one version, even if another is shown meanwhile
        tokens_QM = arguments.tokens(tokens_QM, snapshot.tokenizer.vocab_size)
        passage_len = arguments.positive(
            2 * self.chunk_len if neighbour_len is None else neighbour_len,
            "neighbour_len",
        )
        if passage_len % self.chunk_len:
            raise ValueError(
                f"neighbour_len must be a multiple of {self.chunk_len}, is {passage_len}"
            )
        texts = [snapshot.tokenizer.decode(tokens_M) for tokens_M in tokens_QM]
        ids_QN, distances_QN = search.search(
            snapshot, texts, num_neighbours, exclude_documents, rank
        )
        return results.retrieved_at(
            snapshot, ids_QN, distances_QN, num_neighbours, passage_len
        )

    def nearest(
        self,
        vectors_QW: Float[np.ndarray, "Q W"],
        k: int,
        *,
        exclude_documents: Collection[str] = (),
        shards: tuple[int, ...] | None = None,
    ) -> tuple[Int[np.ndarray, "Q N"], Float[np.ndarray, "Q N"]]:
        """Chunk ids and squared distances of vectors' nearest chunks: `search.nearest`."""
        return search.nearest(self.snapshot, vectors_QW, k, exclude_documents, shards)

    def found(self, chunk_id: int, distance: float = float("nan")) -> Found:
        """The passage at a chunk, with its source; IndexError if there is no such chunk."""
        row, total = arguments.whole(chunk_id, "chunk_id"), len(self.snapshot.chunks())
        if not 0 <= row < total:
            raise IndexError(
                f"there is no chunk {row} in {self.folder}, it has 0..{total - 1}"
            )
        (found,) = results.passages_at(
            self.snapshot, np.array([row]), np.array([distance])
        )
        return found
