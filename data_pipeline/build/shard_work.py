"""The work of each stage after the documents: how a shard of it is made.

Each work is a frozen dataclass, so that it can be sent to another process: it holds settings,
the database's folder and fingerprints, never what they stand for. Embedder, tokenizer and
index are loaded where they are used, once a process and one of a kind at a time.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
from jaxtyping import Int

from data_pipeline.config import DataConfig
from data_pipeline.database import Snapshot
from data_pipeline.database import neighbours as neighbour_tables
from data_pipeline.database.search import allowed_for
from data_pipeline.embedding import chunk_vectors
from data_pipeline.embedding.embedder import Embedder, check_embedder, load_embedder
from data_pipeline.index import lexical, sharded
from data_pipeline.sequences import dataset, packing
from data_pipeline.storage.costs import SearchSpeed
from data_pipeline.storage.files import write_json
from data_pipeline.storage.mapped_arrays import open_array
from data_pipeline.text import chunks
from data_pipeline.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TokenizerWork:
    """Trains the tokenizer on the training split, or keeps the one that is given."""

    folder: Path
    given: str  # path that `Tokenizer.load` takes; '' = train one
    vocab_size: int

    def __call__(self, shard: str, out: Path) -> Iterator[str]:
        path = out / "tokenizer.model"
        if self.given:
            path.write_bytes(Tokenizer.load(self.given).model)
            return
        yield "training the tokenizer"
        names = _train(self.folder)
        tables = (read_documents(self.folder, name, ["text"]) for name in names)
        texts = (text.as_py() for table in tables for text in table.column("text"))
        Tokenizer.train(texts, self.vocab_size, path)


@dataclasses.dataclass(frozen=True)
class ChunksWork:
    """Cuts the documents of a shard into chunks."""

    folder: Path
    tokenizer: str  # contents of the stage, as of the others below
    chunk_len: int

    def __call__(self, shard: str, out: Path) -> Iterator[int]:
        table = read_documents(self.folder, shard, ["row", "text"])
        chunks.write_shard(
            table.column("text").to_pylist(),
            table.column("row")[0].as_py(),
            _tokenizer(self.folder, self.tokenizer),
            self.chunk_len,
            out,
        )
        yield 1


@dataclasses.dataclass(frozen=True)
class EmbeddingsWork:
    """Embeds the chunks of a shard."""

    folder: Path
    tokenizer: str
    embedder: str  # as in `DataConfig`
    fingerprint: str  # of the embedder

    def __call__(self, shard: str, out: Path) -> Iterator[int]:
        """Raises ValueError if the embedder is another one where this runs."""
        embed = embedder(self.embedder)
        if embed.fingerprint != self.fingerprint:
            raise ValueError(
                f"embedder {self.embedder!r} has fingerprint {embed.fingerprint} on one "
                f"machine and {self.fingerprint} where the build was started: install "
                "the same on all"
            )
        tokenizer = _tokenizer(self.folder, self.tokenizer)
        table = chunk_table(self.folder, [shard])
        tokens_TM = table.take("tokens", np.arange(len(table)))
        blocks = []
        for block_TW in chunk_vectors.embed_blocks(tokens_TM, tokenizer, embed):
            blocks.append(block_TW)
            yield len(block_TW)
        np.save(out / "vectors.npy", np.concatenate(blocks), allow_pickle=False)


@dataclasses.dataclass(frozen=True)
class LexicalWork:
    """Indexes the words of the chunks that a shard of the index is over."""

    folder: Path
    tokenizer: str
    parts: tuple[range, ...]

    def __call__(self, shard: str, out: Path) -> Iterator[str]:
        table, ids_T = _searchable(self.folder, self.parts[int(shard)])
        yield f"indexing the words of {len(ids_T):,} chunks"
        tokenizer = _tokenizer(self.folder, self.tokenizer)
        lexical.write_shard(out, ids_T, lexical.texts_of(table, ids_T, tokenizer))


@dataclasses.dataclass(frozen=True)
class IndexWork:
    """Indexes consecutive chunks of the training split, and measures recall and speed.

    Attributes:
        width: W of the embeddings.
        parts: chunks that each shard of the index is over.
        held_out: shards of the other splits, for queries.
    """

    folder: Path
    kind: str
    recall_target: float
    width: int
    parts: tuple[range, ...]
    held_out: tuple[str, ...]

    def __call__(self, shard: str, out: Path) -> Iterator[str | SearchSpeed]:
        _, ids_T = _searchable(self.folder, self.parts[int(shard)])
        stored = chunk_vectors.all_vectors(self._embeddings(_train(self.folder)))
        vectors_TW = stored.take(ids_T).astype(np.float32)
        yield f"indexing {len(vectors_TW):,} vectors"
        index, facts, speed = sharded.build_shard(
            ids_T,
            vectors_TW,
            self.kind,
            recall_target=self.recall_target,
            queries_QW=chunk_vectors.read_vectors(
                self._embeddings(self.held_out), self.width, sharded.MAX_QUERIES
            ),
            scratch=out,
        )
        index.save(out)
        write_json(out / "facts.json", facts)
        yield speed
        yield f"{facts['kind']}: {sharded.in_words(facts, speed.queries_per_s)}"

    def _embeddings(self, shards: Sequence[str]) -> list[Path]:
        return [self.folder / "embeddings" / shard for shard in shards]


@dataclasses.dataclass(frozen=True)
class SearchesWork:
    """Finds the nearest allowed chunks of a shard's chunks in one shard of the index.

    So nobody holds the whole index. A shard is named by `name_of_search`. What is found lies in
    `searches/` until it is merged.
    """

    folder: Path
    database: str  # its fingerprint
    candidates: int

    def __call__(self, shard: str, out: Path) -> Iterator[int]:
        index, queries = shard.split(".")
        split, number = queries.split("-")
        snapshot = _snapshot(self.folder, self.database)
        rows = snapshot.chunks(split).rows_of_shard(int(number))
        vectors_QW = chunk_vectors.vectors(self.folder / "embeddings" / queries)
        found = neighbour_tables.exact_neighbours(
            _index_shard(self.folder, index, self.database),
            vectors_QW,
            self.candidates,
            allowed_for(snapshot, split, np.asarray(rows)),
            snapshot.vectors,
        )
        neighbour_tables.write_shard(out, *found)
        yield len(vectors_QW)


@dataclasses.dataclass(frozen=True)
class NeighboursWork:
    """Merges what was found for a shard's chunks in each shard of the index.

    Exact: a chunk among the N nearest allowed of all is among those of its index shard.
    """

    folder: Path
    indexes: tuple[str, ...]
    candidates: int

    def __call__(self, shard: str, out: Path) -> Iterator[int]:
        found = []
        for index in self.indexes:
            pair = self.folder / "searches" / name_of_search(index, shard)
            arrays = [open_array(pair / f"{n}.npy") for n in ("ids", "distances")]
            found.append((arrays[0], arrays[1]))
        neighbour_tables.write_shard(out, *sharded.merge(found, self.candidates))
        yield from ()


@dataclasses.dataclass(frozen=True)
class SequencesWork:
    """Packs some of a split's chunks and their neighbours into sequences.

    What is written lies in `sequences/` until it is joined into the dataset.
    """

    folder: Path
    database: str  # its fingerprint
    version: int  # of the database
    cfg: DataConfig

    def __call__(self, shard: str, out: Path) -> Iterator[int]:
        snapshot = _snapshot(self.folder, self.database, self.version)
        split = shard.split("-")[0]
        packed_SC = _packed(self.folder, self.database, self.version, split, self.cfg)
        yield from dataset.write_shard(snapshot, self.cfg, shard, packed_SC, out)


def name_of_search(index: str, queries: str) -> str:
    """Names the search for a shard of queries in a shard of the index.

    Names sort by index shard, so an engine that takes them in order opens each once.
    """
    return f"{index}.{queries}"


@dataclasses.dataclass(frozen=True)
class DatasetWork:
    """Joins the shards of sequences into a dataset."""

    folder: Path
    database: str  # its fingerprint
    version: int  # of the database
    cfg: DataConfig

    def __call__(self, shard: str, out: Path) -> Iterator[str]:
        yield from ()
        snapshot = _snapshot(self.folder, self.database, self.version)
        dataset.join(snapshot, self.cfg, self.folder / "sequences", out)


def _searchable(folder: Path, ids: range):
    """The table of training chunks, and of some of their ids those that have text."""
    table = chunk_table(folder, _train(folder))
    return table, np.asarray(ids, np.int64)[table.has_text(ids)]


def _train(folder: Path) -> list[str]:
    return shard_names(folder, "train")


def shard_names(folder: Path, split: str = "*") -> list[str]:
    """Names of shards of documents, so of chunks and all that follows; in order."""
    paths = (folder / "documents" / "all").glob(f"{split}-*.parquet")
    return sorted(path.stem for path in paths)


def read_documents(folder: Path, shard: str, columns: list[str]) -> pyarrow.Table:
    """Columns of the documents of a shard."""
    path = folder / "documents" / "all" / f"{shard}.parquet"
    return pyarrow.parquet.read_table(path, columns=columns)


def chunk_table(folder: Path, shards: Sequence[str]) -> chunks.ChunkTable:
    """The chunks of some shards."""
    return chunks.ChunkTable([folder / "chunks" / shard for shard in shards])


def index_parts(folder: Path, max_rows: int) -> tuple[range, ...]:
    """Chunks of the training split for each shard of the index, `max_rows` or fewer."""
    sizes = [len(chunk_table(folder, [name])) for name in _train(folder)]
    return tuple(sharded.split_rows(sizes, max_rows))


def check_models(cfg: DataConfig, wanted: Sequence[str]) -> None:
    """Refuses wrong names of models before hours of reading rather than after.

    Args:
        wanted: the stages that will be made.
    Raises:
        ValueError, FileNotFoundError: as `Tokenizer.load` and `check_embedder`.
    """
    if cfg.tokenizer and "tokenizer" in wanted:
        Tokenizer.load(cfg.tokenizer)
    if "embeddings" in wanted:
        check_embedder(cfg.embedder)


@functools.lru_cache(maxsize=1)
def embedder(name: str) -> Embedder:
    """Loads an embedder, as `load_embedder` does, once a process."""
    return load_embedder(name)


# Fingerprints are arguments below so that a database that was made again is opened again.


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path, contents: str) -> Tokenizer:
    return Tokenizer.load(folder / "tokenizer" / "all" / "tokenizer.model")


@functools.lru_cache(maxsize=1)
def _snapshot(folder: Path, fingerprint: str, version: int = 0) -> Snapshot:
    return Snapshot.open(folder, version)


@functools.lru_cache(maxsize=1)
def _packed(
    folder: Path, fingerprint: str, version: int, split: str, cfg: DataConfig
) -> Int[np.ndarray, "S C"]:
    return packing.pack(_snapshot(folder, fingerprint, version), split, cfg)


@functools.lru_cache(maxsize=1)
def _index_shard(folder: Path, shard: str, fingerprint: str) -> sharded.ShardedIndex:
    snapshot = _snapshot(folder, fingerprint)
    width, total = snapshot.manifest["embedding_width"], len(snapshot.chunks())
    loaded = sharded.load_shard(folder / "index" / shard, width, total)
    return sharded.ShardedIndex([loaded], width)
