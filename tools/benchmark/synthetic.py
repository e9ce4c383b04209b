"""Databases and datasets of random tokens, written by the project's own writers.

Text, its embedding and, for a dataset, the search are left out; all files are those that
a build makes.
"""

import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from data_pipeline.build.engine import run_stage
from data_pipeline.build.local_engine import LocalEngine
from data_pipeline.config import DataConfig
from data_pipeline.database import Snapshot, neighbours
from data_pipeline.database.manifest import FORMAT_VERSION
from data_pipeline.database.versions import Version
from data_pipeline.embedding import embedder
from data_pipeline.index import sharded
from data_pipeline.sequences import dataset, packing
from data_pipeline.storage.files import fingerprint, write_json, write_sealed
from data_pipeline.text.tokenizer import Tokenizer
from tools.benchmark.embed import code_chunks
from tools.benchmark.result import progress

_CHUNK_LEN = 64
_DOCUMENT_CHUNKS = 20
_VOCAB_SIZE = 128_000  # of a dataset


def clustered(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Draws unit vectors (T, W) in clusters of 50."""
    centres = rng.standard_normal((max(1, rows // 50), width), np.float32)
    vectors_TW = rng.standard_normal((rows, width), np.float32) * 0.5
    vectors_TW += centres[rng.integers(len(centres), size=rows)]
    return vectors_TW / np.linalg.norm(vectors_TW, axis=1, keepdims=True)


def write_database(
    folder: Path, rows: int, width: int, shards: int, index: str
) -> Path:
    """Writes a database that can be served: random tokens, clustered vectors.

    Args:
        index: auto, exact or scann.
    """
    rng = np.random.default_rng(0)
    progress(f"indexing {rows} vectors in {shards} shards")
    vectors_TW = clustered(rng, rows, width)
    queries_QW = vectors_TW[rng.integers(0, rows, 400)]
    parts = np.array_split(np.arange(rows), shards)
    facts = []

    def write_index(name: str, shard: Path) -> None:
        ids_T = parts[int(name)]
        built, fact, _ = sharded.build_shard(
            ids_T, vectors_TW[ids_T], index, recall_target=0.97, queries_QW=queries_QW
        )
        built.save(shard)
        facts.append(fact)

    def write_vectors(name: str, shard: Path) -> None:
        np.save(shard / "vectors.npy", vectors_TW.astype(np.float16))

    def write_chunks(name: str, shard: Path) -> None:
        documents_T = np.arange(rows) // _DOCUMENT_CHUNKS
        _write_chunks(shard, rng.integers(3, 260, (rows, _CHUNK_LEN)), documents_T)

    writers: dict[str, tuple[list[str], Callable[[str, Path], None]]] = {
        "tokenizer": (["all"], _write_tokenizer),
        "documents": (
            ["all"],
            lambda name, shard: _write_documents(shard, -(-rows // _DOCUMENT_CHUNKS)),
        ),
        "chunks": (["train-00000"], write_chunks),
        "embeddings": (["train-00000"], write_vectors),
        "index": ([f"{number:05d}" for number in range(shards)], write_index),
    }
    contents = {
        stage: run_stage(
            folder / stage, {}, {}, dict.fromkeys(names, 1), _work(write), LocalEngine()
        )
        for stage, (names, write) in writers.items()
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint(contents),
        "contents": contents,
        "chunk_len": _CHUNK_LEN,
        "embedding_width": width,
        "embedder": "minilm",
        "embedder_fingerprint": embedder.load_embedder("minilm").fingerprint,
        "index": sharded.combined_facts(facts),
    }
    write_sealed(folder / "manifest.json", manifest)
    return folder


def _work(write: Callable[[str, Path], None]):
    """Wraps a writer as work of an engine, which tells of no rows."""

    def work(name: str, shard: Path) -> Iterator[int | str]:
        write(name, shard)
        yield from ()

    return work


def _write_tokenizer(name: str, shard: Path) -> None:
    Tokenizer.train(code_chunks(500), 2000, shard / "tokenizer.model")


def _write_documents(shard: Path, num_documents: int) -> None:
    names = [f"document-{row}" for row in range(num_documents)]
    same = {column: names for column in ("id", "title", "uri", "licence")}
    sizes = {"size_bytes": [_DOCUMENT_CHUNKS * 256] * len(names)}
    pyarrow.parquet.write_table(pa.table(same | sizes), shard / "train-00000.parquet")


def _write_chunks(shard: Path, tokens_TM: np.ndarray, documents_T: np.ndarray) -> None:
    """Writes a chunk table whose chunks are all full."""
    first_T = np.searchsorted(documents_T, documents_T)
    columns = {
        "tokens": tokens_TM.astype(np.int32),
        "lengths": np.full(len(tokens_TM), tokens_TM.shape[1], np.int32),
        "documents": documents_T.astype(np.int64),
        "offsets": (np.arange(len(tokens_TM)) - first_T) * 4 * tokens_TM.shape[1],
    }
    for name, column in columns.items():
        np.save(shard / f"{name}.npy", column, allow_pickle=False)


def write_dataset(folder: Path, cfg: DataConfig, num_sequences: int) -> Path:
    """Writes `num_sequences` training sequences; gives the folder for `Sequences`."""
    rng = np.random.default_rng(cfg.seed)
    num_chunks = num_sequences * cfg.sequence_chunks
    documents_T = np.cumsum(rng.random(num_chunks) < 1 / _DOCUMENT_CHUNKS)
    shards = [folder / name / "train-00000" for name in ("chunks", "neighbours")]
    documents = folder / "documents" / "all"
    for made in (*shards, documents):
        made.mkdir(parents=True)
    _write_documents(documents, int(documents_T[-1]) + 1)
    tokens_TM = rng.integers(0, _VOCAB_SIZE, (num_chunks, cfg.chunk_len))
    _write_chunks(shards[0], tokens_TM, documents_T)
    shape_TN = (num_chunks, cfg.candidates)
    ids_TN = rng.integers(0, num_chunks, shape_TN)
    neighbours.write_shard(shards[1], ids_TN, rng.random(shape_TN, np.float32))
    write_json(folder / "chunks" / "stage.json", {"shards": ["train-00000"]})
    as_built = Version(number=0, base="")
    manifest = {"fingerprint": "random tokens", "chunk_len": cfg.chunk_len}
    snapshot = Snapshot(folder, manifest, as_built)
    # All that an example asks of a tokenizer.
    token_bytes = types.SimpleNamespace(token_bytes_V=np.full(_VOCAB_SIZE, 4, np.int32))
    snapshot.tokenizer = cast(Tokenizer, token_bytes)
    write_sequences(snapshot, cfg, folder / "dataset")
    return folder / "dataset"


def write_sequences(database: Snapshot, cfg: DataConfig, folder: Path) -> None:
    """Makes a dataset of an open database; raises ValueError as `dataset.plan`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for shard in dataset.plan(database, cfg):
            (made := Path(temporary) / shard).mkdir()
            packed_SC = packing.pack(database, shard.split("-")[0], cfg)
            for _ in dataset.write_shard(database, cfg, shard, packed_SC, made):
                pass
        dataset.join(database, cfg, Path(temporary), folder)
