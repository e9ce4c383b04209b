"""The database directory: what is in it, and how to search it.

    manifest.json   written last: format, fingerprints, sizes, measured recall
    documents/      Parquet tables of the documents of each split, texts included
    tokenizer/      tokenizer.model
    chunks/         SPLIT-00000/ ...  chunk tables of the splits (`chunks.py`)
    embeddings/     SPLIT-00000/vectors.npy, (T, W) float16
    index/          00000/ ...  over the embeddings of the training split, the only one
                    searched (`index/sharded.py`)
    neighbours/     SPLIT-00000/ ...  (`neighbours.py`)
    searches/       00000.SPLIT-00000/ ...  while neighbours are found: those of a shard of
                    chunks in one shard of the index
    dataset/        the TFDS dataset of sequences (`dataset.py`)

`build.py` makes it. Validation and test documents are only ever queries: they are not in
the index and can't be found.
"""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Float, Int, Integer

from data_pipeline import embedder as embedders
from data_pipeline.chunks import ChunkTable, open_array
from data_pipeline.documents import Document
from data_pipeline.engine import read_json
from data_pipeline.index.sharded import ShardedIndex, load_shard
from data_pipeline.neighbours import NeighbourTable, find_neighbours
from data_pipeline.tokenizer import Tokenizer

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A passage of the database, where it comes from and how near it is.

    Attributes:
        text: of the chunk that matched.
        continuation: what follows it in its document; '' at the document's end.
        offset: UTF-8 bytes of the document before the match.
        distance: squared L2 distance of the embeddings, 0 to 4 for unit vectors.
    """

    text: str
    continuation: str
    document_id: str
    title: str
    uri: str
    licence: str
    offset: int
    distance: float
    chunk_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class Retrieved:
    """Neighbours of Q chunks as arrays: what a model reads, and what tells the source."""

    tokens_QNR: Int[np.ndarray, "Q N R"]
    lengths_QN: Int[np.ndarray, "Q N"]  # 0 = absent
    chunk_ids_QN: Int[np.ndarray, "Q N"]  # -1 = absent
    distances_QN: Float[np.ndarray, "Q N"]


class Database:
    """An open database. Text and tokens stay on disk; the index is loaded when asked."""

    def __init__(self, folder: Path, manifest: dict):
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Path) -> "Database":
        """Opens a finished database.

        Raises:
            ValueError: if there is none in the folder, it is of another format or a
                later build of it was broken off; says what to do.
        """
        folder = Path(folder)
        manifest = read_json(folder / "manifest.json")
        if manifest is None:
            raise ValueError(
                f"{folder} holds no finished database (no manifest.json): build it with "
                "python -m experiments.build_database"
            )
        if manifest.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{folder} has database format {manifest.get('format_version')}, this "
                f"code reads {FORMAT_VERSION}: build it again"
            )
        for stage, contents in manifest["contents"].items():
            made = read_json(folder / stage / "stage.json") or {}
            if made.get("contents") != contents:
                raise ValueError(
                    f"{folder / stage} is not what {folder / 'manifest.json'} speaks of: "
                    "a build was broken off, start it again"
                )
        return cls(folder, manifest)

    @property
    def fingerprint(self) -> str:
        """Changes when any content of the database changes."""
        return self.manifest["fingerprint"]

    @property
    def chunk_len(self) -> int:
        return self.manifest["chunk_len"]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "tokenizer" / "all" / "tokenizer.model")

    @functools.cached_property
    def embedder(self) -> embedders.Embedder:
        """The embedder of the index; ValueError if its weights are not the same now."""
        embedder = embedders.load_embedder(self.manifest["embedder"])
        if embedder.fingerprint != self.manifest["embedder_fingerprint"]:
            raise ValueError(
                f"embedder {self.manifest['embedder']!r} has fingerprint "
                f"{embedder.fingerprint}, {self.folder} was built with "
                f"{self.manifest['embedder_fingerprint']}: build it again"
            )
        return embedder

    @property
    def index(self) -> ShardedIndex:
        """Over all chunks that can be found."""
        return self.index_of(tuple(range(self.num_shards)))

    @property
    def num_shards(self) -> int:
        """Of the index; a server may hold some of them."""
        return len(self._index_folders)

    @functools.cache  # noqa: B019
    def index_of(self, shards: tuple[int, ...]) -> ShardedIndex:
        """Over some shards of the index, which are loaded; no others are."""
        loaded = [load_shard(self._index_folders[shard]) for shard in shards]
        return ShardedIndex(loaded, self.manifest["embedding_width"])

    @functools.cached_property
    def searchable(self) -> Int[np.ndarray, " T"]:
        """Ids of the chunks that can be found: those with text. Loads no index."""
        return np.concatenate([open_array(f / "ids.npy") for f in self._index_folders])

    @property
    def _index_folders(self) -> list[Path]:
        return sorted((self.folder / "index").glob("[0-9]*"))

    def shards(self, stage: str, split: str) -> list[Path]:
        """Folders of a split's shards in a stage, in order."""
        return sorted((self.folder / stage).glob(f"{split}-*"))

    @functools.cache  # noqa: B019 - a database lives as long as its process
    def chunks(self, split: str = "train") -> ChunkTable:
        return ChunkTable(self.shards("chunks", split))

    @functools.cache  # noqa: B019
    def neighbours(self, split: str) -> NeighbourTable:
        return NeighbourTable(self.shards("neighbours", split))

    @functools.cache  # noqa: B019
    def documents(self, split: str = "train") -> pa.Table:
        """Id, title, uri, licence and size of a split's documents, by row."""
        folder = self.folder / "documents" / "all"
        columns = ["id", "title", "uri", "licence", "size_bytes"]
        tables = [
            pa.parquet.read_table(path, columns=columns)
            for path in sorted(folder.glob(f"{split}-*.parquet"))
        ]
        return (
            pa.concat_tables(tables) if tables else pa.table({c: [] for c in columns})
        )

    @functools.cached_property
    def document_of_chunk(self) -> Int[np.ndarray, " T"]:
        """Row of the document of each chunk that can be found."""
        return self.chunks().column("documents")

    def retrieve(
        self,
        tokens_QM: Integer[np.ndarray, "Q M"],
        num_neighbours: int,
        *,
        neighbour_len: int | None = None,
        exclude_documents: Collection[str] = (),
    ) -> Retrieved:
        """Neighbours of chunks, as `generate.py`'s Retriever wants them.

        Chunks are turned into text and embedded by the function that embedded the
        database.

        Args:
            tokens_QM: token ids of whole chunks.
            num_neighbours: N.
            neighbour_len: R; match and one continuation, if not given.
            exclude_documents: ids of documents that must not be found.
        """
        texts = [self.tokenizer.decode(tokens) for tokens in tokens_QM]
        ids_QN, distances_QN = self._nearest(texts, num_neighbours, exclude_documents)
        tokens_QNR, lengths_QN = self.chunks().passages(
            ids_QN, neighbour_len or 2 * self.chunk_len
        )
        return Retrieved(tokens_QNR, lengths_QN, ids_QN, distances_QN)

    def search(
        self,
        texts: Sequence[str],
        k: int,
        *,
        exclude_documents: Collection[str] = (),
    ) -> list[list[Found]]:
        """The k nearest passages of each text, nearest first; fewer if there are fewer.

        Args:
            texts: queries of any length; what exceeds the embedder's window is cut.
            exclude_documents: ids of documents that must not be found.
        Raises:
            ValueError: if k is not positive or an id is not in the database.
        """
        ids_QN, distances_QN = self._nearest(texts, k, exclude_documents)
        return [
            [
                self.found(int(chunk_id), float(distance))
                for chunk_id, distance in zip(ids, distances, strict=True)
                if chunk_id >= 0
            ]
            for ids, distances in zip(ids_QN, distances_QN, strict=True)
        ]

    def found(self, chunk_id: int, distance: float = float("nan")) -> Found:
        """The passage at a chunk, with its source."""
        table = self.chunks()
        tokens, lengths = table.passages(np.array([chunk_id]), 2 * self.chunk_len)
        row = int(table.take("documents", np.array([chunk_id]))[0])
        document = self.documents().slice(row, 1).to_pylist()[0]
        passage, length = tokens[0], int(lengths[0])
        return Found(
            text=self.tokenizer.decode(passage[: min(length, self.chunk_len)]),
            continuation=self.tokenizer.decode(passage[self.chunk_len : length]),
            document_id=document["id"],
            title=document["title"],
            uri=document["uri"],
            licence=document["licence"],
            offset=int(table.take("offsets", np.array([chunk_id]))[0]),
            distance=distance,
            chunk_id=chunk_id,
        )

    def nearest(
        self,
        vectors_QW: Float[np.ndarray, "Q W"],
        k: int,
        *,
        exclude_documents: Collection[str] = (),
        shards: tuple[int, ...] | None = None,
    ) -> tuple[Int[np.ndarray, "Q N"], Float[np.ndarray, "Q N"]]:
        """Chunk ids and squared distances of the k nearest chunks; -1 at inf if fewer.

        Args:
            exclude_documents: ids of documents that must not be found.
            shards: of the index to search; all, if not given.
        Raises:
            ValueError: if k is not positive, an id is not in the database or a vector is
                zero, not finite or of another width.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, is {k}")
        excluded = self._rows(exclude_documents)
        document_of = self.document_of_chunk
        index = self.index if shards is None else self.index_of(shards)

        def allowed(_, ids):
            return ~np.isin(document_of[ids], excluded)

        return find_neighbours(index, vectors_QW, k, allowed)

    def _nearest(self, texts: Sequence[str], k: int, exclude_documents):
        vectors_QW = self.embedder.embed(list(texts))
        return self.nearest(vectors_QW, k, exclude_documents=exclude_documents)

    def _rows(self, document_ids: Collection[str]) -> np.ndarray:
        rows = [self._row_of_document.get(name) for name in document_ids]
        for name, row in zip(document_ids, rows, strict=True):
            if row is None:
                raise ValueError(f"document {name!r} is not in {self.folder}")
        return np.array(rows, np.int64)

    @functools.cached_property
    def _row_of_document(self) -> dict[str, int]:
        ids = self.documents().column("id").to_pylist()
        return {name: row for row, name in enumerate(ids)}

    def allowed_for(self, split: str, queries: range):
        """`find_neighbours`' filter for a split's chunks: not of their own document."""
        document_of = self.document_of_chunk
        if split != "train":  # held-out documents are not in the database
            return lambda _, ids: np.ones(ids.shape, bool)
        own = document_of[queries.start : queries.stop]
        return lambda rows, ids: document_of[ids] != own[rows][:, None]


def write_documents(
    path: Path, documents: Sequence[Document], *, first_row: int
) -> None:
    """Writes documents as a Parquet table, with their row in the split."""
    columns = {
        field.name: [getattr(document, field.name) for document in documents]
        for field in dataclasses.fields(Document)
    }
    columns["size_bytes"] = [len(text.encode()) for text in columns["text"]]
    columns["row"] = list(range(first_row, first_row + len(documents)))
    pyarrow.parquet.write_table(pa.table(columns), path, compression="zstd")


def vectors(shard: Path) -> np.ndarray:
    """Embeddings of a shard's chunks, (T, W) float16, by memory map."""
    return open_array(shard / "vectors.npy")
