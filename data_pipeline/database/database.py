"""The database directory: what is in it, and how to search it.

    manifest.json   written last: format, fingerprints, sizes, measured recall
    documents/      Parquet tables of the documents of each split, texts included
    tokenizer/      tokenizer.model
    chunks/         SPLIT-00000/ ...  chunk tables of the splits (`chunks.py`)
    embeddings/     SPLIT-00000/vectors.npy, (T, W) float16
    index/          00000/ ...  over the embeddings of the training split, the only one
                    searched (`index/sharded.py`)
    lexical/        00000/ ...  the words of the same chunks, if asked for (`lexical.py`)
    neighbours/     SPLIT-00000/ ...  (`neighbours.py`)
    dataset/        the TFDS dataset of sequences (`dataset.py`)
    versions/ ...   what was added and deleted since (`versions.py`)

`build.py` makes it. Validation and test documents are only queries and can't be found.
"""

import copy
import functools
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float16, Int, Integer

from data_pipeline.database import (
    compaction,
    refreshed_neighbours,
    search,
    updates,
    verify,
    versions,
)
from data_pipeline.database import manifest as manifests
from data_pipeline.database.neighbours import NeighbourTable, find_neighbours
from data_pipeline.database.results import (
    Found,
    Retrieved,
    found_at,
    passage_at,
    retrieved_at,
)
from data_pipeline.database.version_paths import Layout
from data_pipeline.database.versions import Version
from data_pipeline.embedding import chunk_vectors
from data_pipeline.embedding.embedder import Embedder
from data_pipeline.index.lexical import Lexical
from data_pipeline.index.sharded import Shard, ShardedIndex, load_shard
from data_pipeline.storage.mapped_arrays import Column
from data_pipeline.text.chunks import ChunkTable
from data_pipeline.text.documents import read_sources, row_of_id
from data_pipeline.text.tokenizer import Tokenizer


class Database:
    """An open database. Text and tokens stay on disk; the index is loaded when asked.

    It shows one version, until it is changed through it or told to `refresh`. Searches
    under way go on in the version they began with.
    """

    def __init__(self, folder: Path, manifest: dict, state: Version):
        self.folder = folder
        self.manifest = manifest
        # What was opened of the version that is shown, by what was asked for.
        self._opened: dict[Hashable, Any] = {}
        self._show(state)

    def _show(self, state: Version) -> None:
        self.state = state
        self._layout = Layout(self.folder, state)
        kept = self._opened.keys() & set(self._layout.index_shards())
        self._opened = {path: self._opened[path] for path in kept}

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._opened:
            self._opened[key] = make()
        return self._opened[key]

    @classmethod
    def open(cls, folder: str | Path, version: int | None = None) -> "Database":
        """Opens a finished database.

        Args:
            version: its number; the one in force, if not given.
        Raises:
            ValueError: if there is none, or none of that version or this format, a later
                build was broken off, a file is missing or damaged; says what to do.
        """
        folder = Path(folder)
        manifest = manifests.read(folder)
        state = versions.read(folder, manifest, version)
        verify.check_quickly(folder, state)
        return cls(folder, manifest, state)

    @property
    def version(self) -> int:
        """Number of the version that is shown; 0 is the build."""
        return self.state.number

    @property
    def fingerprint(self) -> str:
        """Changes when any content of the database changes."""
        later = f"-{self.state.fingerprint}" if self.version else ""
        return self.manifest["fingerprint"] + later

    @property
    def chunk_len(self) -> int:
        return self.manifest["chunk_len"]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "tokenizer" / "all" / "tokenizer.model")

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The embedder of the index; ValueError if its weights are not the same now."""
        return manifests.load_embedder_of(self.folder, self.manifest)

    @property
    def index(self) -> ShardedIndex:
        """Over all chunks that can be found."""
        return self.index_of(tuple(range(self.num_shards)))

    @property
    def num_shards(self) -> int:
        """Of the index, one for each delta included."""
        return len(self._layout.index_shards())

    def index_of(self, shards: tuple[int, ...]) -> ShardedIndex:
        """Over some shards of the index, which are loaded; no others are."""
        folders = self._layout.index_shards()
        loaded = [
            self._once(folders[shard], functools.partial(self._load, folders[shard]))
            for shard in shards
        ]
        width = self.manifest["embedding_width"]
        return self._once(("index", shards), lambda: ShardedIndex(loaded, width))

    def _load(self, folder: Path) -> Shard:
        verify.check_below(folder, self.folder, self.state)
        return load_shard(folder)

    @property
    def searchable(self) -> Int[np.ndarray, " T"]:
        """Ids of the chunks that can be found: those with text. Loads no index."""
        ids_T = Column([f / "ids.npy" for f in self._layout.index_shards()]).whole()
        return ids_T[~self.state.is_deleted(self.document_of_chunk[ids_T])]

    @property
    def has_words(self) -> bool:
        """Whether words were indexed."""
        return "lexical" in self.manifest["contents"]

    @property
    def lexical(self) -> Lexical:
        """The words of all chunks; `has_words` must be true."""
        return self._once("lexical", lambda: Lexical(self._layout.lexical_shards()))

    def shards(self, stage: str, split: str) -> list[Path]:
        """Folders of a split's shards in a stage, in order; what was added is last."""
        return self._layout.shards(stage, split)

    def chunks(self, split: str = "train") -> ChunkTable:
        """All chunks of a split, those of deleted documents included."""
        return self._once(
            ("chunks", split), lambda: ChunkTable(self.shards("chunks", split))
        )

    def neighbours(self, split: str) -> NeighbourTable:
        """Of a split's chunks; ValueError if not computed for this version yet."""
        return self._once(
            ("neighbours", split),
            lambda: refreshed_neighbours.neighbours_of(self, split),
        )

    def documents(self, split: str = "train") -> pa.Table:
        """Id, title, uri, licence and size of a split's documents, by row.

        Deleted ones are there too, for rows to count on; see `has_document`.
        """
        return self._once(
            ("documents", split),
            lambda: read_sources(self._layout.document_tables(split)),
        )

    @property
    def document_of_chunk(self) -> Int[np.ndarray, " T"]:
        """Row of the document of each chunk of the training split."""
        return self._once("document_of", lambda: self.chunks().column("documents"))

    def has_document(self, document_id: str) -> bool:
        """Whether a document can be found."""
        return document_id in self._row_of_document

    def refresh(self) -> bool:
        """Shows the version that is in force now; whether it is another than before."""
        before, now = self.version, versions.read(self.folder, self.manifest)
        if now.number != before:
            self._show(now)
        return now.number != before

    def newest(self) -> "Database":
        """The version in force, opened beside this one, which goes on showing its own.

        What both have in common is shared and not checked again; this one itself, if it
        shows that version. Raises as `open`.
        """
        state = versions.read(self.folder, manifests.read(self.folder))
        if state.number == self.version:
            return self
        verify.check_quickly(self.folder, state, since=self.state)
        shown = copy.copy(self)
        shown._show(state)
        return shown

    def add(self, documents: Sequence[Mapping]) -> int:
        """Adds documents: mappings with `text`, and `id`, `title`, `uri`, `licence`.

        Returns:
            The number of the new version, which is shown from now on.
        Raises:
            ValueError: naming the document that is not one, or that is there already.
        """
        return updates.add(self, updates.parse_documents(documents))

    def replace(self, documents: Sequence[Mapping]) -> int:
        """As `add`, in place of the documents with the same ids, if there are any."""
        return updates.add(self, updates.parse_documents(documents), replace=True)

    def delete(self, document_ids: Collection[str]) -> int:
        """Deletes documents by id; they are never found again. Returns as `add`.

        Raises:
            ValueError: if one is not in the database; then none is deleted.
        """
        return updates.delete(self, document_ids)

    def compact(self) -> int:
        """Merges what was added and takes deleted text off the disk.

        Older versions can't be opened any more, nor can the build go on in this folder.
        Returns as `add`.
        """
        return compaction.compact(self)

    def retrieve(
        self,
        tokens_QM: Integer[np.ndarray, "Q M"],
        num_neighbours: int,
        *,
        neighbour_len: int | None = None,
        exclude_documents: Collection[str] = (),
        rank: str = "dense",
    ) -> Retrieved:
        """Neighbours of chunks, as `generate.py`'s Retriever wants them.

        Chunks are turned into text and embedded by the database's embedder.

        Args:
            tokens_QM: token ids of whole chunks.
            num_neighbours: N.
            neighbour_len: R; match and one continuation, if not given.
            exclude_documents, rank: see `search`.
        """
        shown = copy.copy(self)  # one version, even if another is shown meanwhile
        texts = [self.tokenizer.decode(tokens) for tokens in tokens_QM]
        ids_QN, distances_QN = search.search(
            shown, texts, num_neighbours, exclude_documents, rank
        )
        shape = (num_neighbours, neighbour_len or 2 * self.chunk_len)
        return retrieved_at(shown, ids_QN, distances_QN, *shape)

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
            rank: "dense", by distance, or "hybrid", by distance and words (`hybrid.py`).
        Raises:
            ValueError: if k is not positive, an id or the words are not in the database.
        """
        shown = copy.copy(self)  # one version, even if another is shown meanwhile
        ids_QN, distances_QN = search.search(shown, texts, k, exclude_documents, rank)
        return found_at(shown, ids_QN, distances_QN)

    def found(self, chunk_id: int, distance: float = float("nan")) -> Found:
        """The passage at a chunk, with its source."""
        return passage_at(self, chunk_id, distance)

    def nearest(
        self,
        vectors_QW: Float[np.ndarray, "Q W"],
        k: int,
        *,
        exclude_documents: Collection[str] = (),
        shards: tuple[int, ...] | None = None,
    ) -> tuple[Int[np.ndarray, "Q N"], Float[np.ndarray, "Q N"]]:
        """Chunk ids and squared distances of the k nearest chunks; -1 at inf if fewer.

        N is k, or the number of chunks if that is less.

        Args:
            exclude_documents: ids of documents that must not be found.
            shards: of the index to search; all, if not given.
        Raises:
            ValueError: if k is not positive, an id is not in the database or a vector is
                zero, not finite or of another width.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, is {k}")
        allowed = self.allowed_outside(exclude_documents)
        index = self.index if shards is None else self.index_of(shards)
        return find_neighbours(index, vectors_QW, min(k, max(index.size, 1)), allowed)

    def allowed_outside(self, exclude_documents: Collection[str]):
        """`find_neighbours`' filter: there, and of none of these documents."""
        excluded, document_of = self.rows_of(exclude_documents), self.document_of_chunk

        def allowed(_, ids: np.ndarray) -> np.ndarray:
            rows = document_of[ids]
            return ~self.state.is_deleted(rows) & ~np.isin(rows, excluded)

        return allowed

    def rows_of(self, document_ids: Collection[str]) -> Int[np.ndarray, " D"]:
        """Rows of documents; ValueError naming one that is not (or no longer) there."""
        rows = [self._row_of_document.get(name) for name in document_ids]
        for name, row in zip(document_ids, rows, strict=True):
            if row is None:
                raise ValueError(f"document {name!r} is not in {self.folder}")
        return np.array(rows, np.int64)

    @property
    def _row_of_document(self) -> dict[str, int]:
        table, deleted_D = self.documents, self.state.deleted_D
        return self._once("row_of_document", lambda: row_of_id(table(), deleted_D))

    def vectors(self, ids_T: Int[np.ndarray, " T"]) -> Float16[np.ndarray, "T W"]:
        """Embeddings of chunks of the training split, by id."""
        shards = self.shards("embeddings", "train")
        column = self._once("vectors", lambda: chunk_vectors.all_vectors(shards))
        return column.take(ids_T)

    def allowed_for(self, split: str, ids_Q: Int[np.ndarray, " Q"]):
        """`find_neighbours`' filter for a split's chunks: there, of another document."""
        document_of = self.document_of_chunk
        # Held-out documents are not in the database.
        own = document_of[ids_Q] if split == "train" else np.full(len(ids_Q), -1)

        def allowed(queries: np.ndarray, ids: np.ndarray) -> np.ndarray:
            rows = document_of[ids]
            return ~self.state.is_deleted(rows) & (rows != own[queries][:, None])

        return allowed
