"""One version of a database as it is open: its tables, arrays, indexes and models.

Letters here: D documents.
"""

import copy
import functools
from collections.abc import Callable, Collection, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float16, Int

from data_pipeline.database import integrity, versions
from data_pipeline.database import manifest as manifests
from data_pipeline.database.neighbours import NeighbourTable, read_changes
from data_pipeline.database.version_paths import VersionPaths
from data_pipeline.database.versions import Version
from data_pipeline.embedding import chunk_vectors
from data_pipeline.embedding.embedder import Embedder
from data_pipeline.index.lexical import Lexical
from data_pipeline.index.sharded import Shard, ShardedIndex, load_shard
from data_pipeline.storage.files import read_json
from data_pipeline.storage.mapped_arrays import Column
from data_pipeline.text.chunks import ChunkTable
from data_pipeline.text.documents import read_sources, row_of_id
from data_pipeline.text.tokenizer import Tokenizer


class Snapshot:
    """An open version. It never shows another one, whatever becomes of the database.

    Text, tokens and vectors stay on disk; an index is loaded when it is first asked for.

    Attributes:
        folder: the database's.
        manifest: what the build says of it, as `manifest.write` wrote it.
        state: the version's record: what was added and deleted since the build.
        version: its number; 0 is the build.
        paths: where the version's files are.
        num_shards: shards of the index, one for each delta included.
        chunk_len: M, tokens of a chunk.
    """

    def __init__(self, folder: Path, manifest: dict, state: Version):
        """Opens nothing yet, and checks nothing: see `open`."""
        self.folder, self.manifest = folder, manifest
        self.chunk_len: int = manifest["chunk_len"]
        # What was opened of this version, by what was asked for.
        self._opened: dict[Hashable, Any] = {}
        self._set_version(state)

    def _set_version(self, state: Version) -> None:
        self.state, self.version = state, state.number
        self.paths = VersionPaths(self.folder, state)
        self._index_folders = self.paths.index_shards()
        self.num_shards = len(self._index_folders)
        # Rows and ids mean something else in another version, but a shard of the index
        # that both have is the same, and loading it is what takes long.
        kept = self._opened.keys() & set(self._index_folders)
        self._opened = {path: self._opened[path] for path in kept}

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._opened:
            self._opened[key] = make()
        return self._opened[key]

    @classmethod
    def open(cls, folder: str | Path, version: int | None = None) -> "Snapshot":
        """Opens a version of a finished database, the one in force if none is given.

        Raises:
            ValueError: if there is no database, or none of that version or this format, a
                later build was broken off, a file is missing or damaged; says what to do.
        """
        folder = Path(folder)
        manifest = manifests.read(folder)
        state = versions.read(folder, manifest, version)
        integrity.check_quickly(folder, state)
        return cls(folder, manifest, state)

    def at(self, state: Version | None = None) -> "Snapshot":
        """The same database at another version, the one in force if none is given.

        It shares the tokenizer, the embedder and the index shards that are loaded already.
        It is this snapshot itself if the version is the same. Checks no files.

        Raises:
            ValueError: if the record of the version in force is missing or damaged.
        """
        if state is None:
            state = versions.read(self.folder, self.manifest)
        if state.number == self.version:
            return self
        other = copy.copy(self)
        other._set_version(state)
        return other

    @property
    def fingerprint(self) -> str:
        """16 digits of the build, and 16 of the version: changes with any content."""
        later = f"-{self.state.fingerprint}" if self.version else ""
        return self.manifest["fingerprint"] + later

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that every token of the database is of."""
        return Tokenizer.load(self.folder / "tokenizer" / "all" / "tokenizer.model")

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The embedder of the index; ValueError if its weights are not the same now."""
        return manifests.load_embedder_of(self.folder, self.manifest)

    def index(self, shards: tuple[int, ...] | None = None) -> ShardedIndex:
        """The index of all chunks that can be found, or some of its shards.

        Loads these and no others. Raises ValueError naming a file that is damaged.
        """
        shards = tuple(range(self.num_shards)) if shards is None else shards
        folders = [self._index_folders[shard] for shard in shards]
        loaded = [self._once(f, functools.partial(self._load, f)) for f in folders]
        width = self.manifest["embedding_width"]
        return self._once(("index", shards), lambda: ShardedIndex(loaded, width))

    def _load(self, folder: Path) -> Shard:
        integrity.check_below(folder, self.folder, self.state)
        return load_shard(folder)

    @property
    def lexical(self) -> Lexical:
        """The index of the words of all chunks; ValueError if the build made none."""
        if "lexical" not in self.manifest["contents"]:
            raise ValueError(
                f"{self.folder} was built without an index of words: build it again with "
                '--config.data.lexical=true, or search by rank="dense"'
            )
        return self._once("lexical", lambda: Lexical(self.paths.lexical_shards()))

    def chunks(self, split: str = "train") -> ChunkTable:
        """The table of a split's chunks, those of deleted documents included."""
        return self._once(
            ("chunks", split), lambda: ChunkTable(self.paths.shards("chunks", split))
        )

    def neighbours(self, split: str) -> NeighbourTable:
        """The table of a split's neighbours; ValueError if it is not computed yet."""
        return self._once(("neighbours", split), lambda: self._read_neighbours(split))

    def _read_neighbours(self, split: str) -> NeighbourTable:
        built = NeighbourTable(self.paths.shards("neighbours", split))
        if self.version == 0 or not len(built):
            return built
        changes = self.paths.changed_neighbours / split
        if read_json(changes / "shard.json") is None:
            raise ValueError(
                f"the neighbours of version {self.version} of {self.folder} are not "
                "computed yet: run the build again, it computes what changed"
            )
        return built.patched(len(self.chunks(split)), *read_changes(changes))

    def documents(self, split: str = "train") -> pa.Table:
        """Id, title, uri, licence and size of a split's documents, by row.

        Deleted ones are there too, for rows to count on; see `has_document`.
        """
        return self._once(
            ("documents", split),
            # In one piece: to take rows of many would copy all of them every time.
            lambda: read_sources(self.paths.document_tables(split)).combine_chunks(),
        )

    @property
    def document_of_chunk(self) -> Int[np.ndarray, " T"]:
        """Row of the document of each chunk of the training split."""
        return self._once("document_of", lambda: self.chunks().column("documents"))

    def vectors(self, ids_T: Int[np.ndarray, " T"]) -> Float16[np.ndarray, "T W"]:
        """Embeddings of chunks of the training split, by id."""
        shards = self.paths.shards("embeddings", "train")
        column = self._once("vectors", lambda: chunk_vectors.all_vectors(shards))
        return column.take(ids_T)

    @property
    def searchable(self) -> Int[np.ndarray, " T"]:
        """Ids of the chunks that can be found: those with text. Loads no index."""
        ids_T = Column([folder / "ids.npy" for folder in self._index_folders]).whole()
        return ids_T[~self.state.is_deleted(self.document_of_chunk[ids_T])]

    @property
    def _row_of_document(self) -> dict[str, int]:
        return self._once(
            "row_of_document",
            lambda: row_of_id(self.documents(), self.state.deleted_D),
        )

    def has_document(self, document_id: str) -> bool:
        """Whether a document can be found: it is in the training split, not deleted."""
        return document_id in self._row_of_document

    def rows_of(self, document_ids: Collection[str]) -> Int[np.ndarray, " D"]:
        """Rows of documents; ValueError naming one that is not (or no longer) there."""
        for name in document_ids:
            if not self.has_document(name):
                raise ValueError(f"document {name!r} is not in {self.folder}")
        rows = [self._row_of_document[name] for name in document_ids]
        return np.array(rows, np.int64)
