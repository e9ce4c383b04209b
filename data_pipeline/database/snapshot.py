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
import pyarrow.parquet as pq
from jaxtyping import Float16, Int

from data_pipeline.database import integrity, versions
from data_pipeline.database import manifest as manifests
from data_pipeline.database.neighbours import NeighbourTable, read_changes
from data_pipeline.database.version_paths import VersionPaths
from data_pipeline.database.versions import Version
from data_pipeline.embedding import chunk_vectors
from data_pipeline.embedding.embedder import Embedder
from data_pipeline.index.lexical import Lexical
from data_pipeline.index.sharded import ShardedIndex, load_shard
from data_pipeline.storage.confined import check_links
from data_pipeline.storage.files import read_json
from data_pipeline.storage.mapped_arrays import Column
from data_pipeline.storage.system_errors import explained
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
            with explained(self.folder):
                self._opened[key] = make()
        return self._opened[key]

    @classmethod
    def open(cls, folder: str | Path, version: int | None = None) -> "Snapshot":
        """Opens a version of a finished database, the one in force if none is given.

        Raises:
            ValueError: if there is no database, or none of that version or this format, a
                later build was broken off, a file is missing or damaged, a link leads out
                of the folder; says what to do.
            OSError: if the system can't read a file; names it and says what to do.
        """
        folder = Path(folder)
        with explained(folder):
            if folder.is_dir():
                check_links(folder)
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
        return self._once(("index", shards), lambda: self._index(shards))

    def _index(self, shards: tuple[int, ...]) -> ShardedIndex:
        folders = [self._index_folders[shard] for shard in shards]
        width = self.manifest["embedding_width"]
        # In one go: each look at the records reads those of all shards.
        fresh = [folder for folder in folders if folder not in self._opened]
        integrity.check_below(fresh, self.folder, self.state)
        for folder in fresh:
            self._opened[folder] = load_shard(folder, width, len(self.chunks()))
        return ShardedIndex([self._opened[folder] for folder in folders], width)

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
        return self._once(("chunks", split), lambda: self._open_chunks(split))

    def _open_chunks(self, split: str) -> ChunkTable:
        table = ChunkTable(self.paths.shards("chunks", split))
        tables = self.paths.document_tables(split)
        num_documents = sum(pq.read_metadata(path).num_rows for path in tables)
        table.check(self.chunk_len, num_documents)
        return table

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

    def _row_of_document(self, split: str) -> dict[str, int]:
        return self._once(
            ("row_of_document", split),
            lambda: row_of_id(self.documents(split), self.state.deleted(split)),
        )

    def has_document(self, document_id: str, split: str = "train") -> bool:
        """Whether a document is in a split, not deleted. Those for training are found."""
        return document_id in self._row_of_document(split)

    def rows_of(
        self, document_ids: Collection[str], split: str = "train"
    ) -> Int[np.ndarray, " D"]:
        """Rows of documents; ValueError naming one that is not (or no longer) there."""
        row_of = self._row_of_document(split)
        for name in document_ids:
            if name not in row_of:
                raise ValueError(f"document {name!r} is not in {self.folder}")
        return np.array([row_of[name] for name in document_ids], np.int64)
