"""Queries a second and latencies of the retrieval service, on this machine.

Shard servers and a router, each a process, beside the same search in this process. Without
--database the database is of random tokens and clustered unit vectors.
"""

import argparse
import asyncio
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from data_pipeline.build.engine import run_stage
from data_pipeline.build.local_engine import LocalEngine
from data_pipeline.database import Database
from data_pipeline.database.manifest import FORMAT_VERSION
from data_pipeline.embedding import embedder
from data_pipeline.index import sharded
from data_pipeline.service import serve_local
from data_pipeline.service.client import RetrievalClient
from data_pipeline.storage.files import fingerprint, write_sealed
from data_pipeline.text.tokenizer import Tokenizer
from tools.benchmark.embed import code_chunks
from tools.benchmark.result import (
    Result,
    Row,
    alternate,
    describe_machine,
    positive,
    progress,
)

_K = 10
_BATCH = 64
_CHUNK_LEN = 64
_DOCUMENT_CHUNKS = 20
_REQUESTS_AT_ONCE = 4  # batches under way from one client


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The flags of `service`."""
    command.add_argument("--database", type=pathlib.Path, help="instead of random one")
    command.add_argument("--shards", type=positive, default=4)
    command.add_argument("--rows", type=positive, default=100_000)
    command.add_argument("--width", type=positive, default=384)
    command.add_argument("--index", default="auto", help="auto, exact or scann")
    command.add_argument("--batches", type=positive, default=40, help="of a round")
    command.add_argument("--requests", type=positive, default=500, help="of one vector")


def run(args: argparse.Namespace) -> Result:
    """Queries a second in batches of 64, and latencies of requests of one vector."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.database or write_database(pathlib.Path(scratch), args)
        database = Database.open(folder)
        queries_QW = _queries(database, max(_BATCH * args.batches, args.requests))
        database.nearest(queries_QW[:_BATCH], _K)  # loads the index
        with _served(folder, args.shards) as client:
            return _measure(args, database, client, queries_QW)


def _measure(args, database: Database, client: RetrievalClient, queries_QW) -> Result:
    batches = [
        queries_QW[start : start + _BATCH]
        for start in range(0, _BATCH * args.batches, _BATCH)
    ]
    _check_equal(database, client, batches[0])
    contestants = {
        "in this process": lambda: [database.nearest(b, _K) for b in batches],
        "service, one request at a time": lambda: [
            client.nearest(b, _K) for b in batches
        ],
        f"service, {_REQUESTS_AT_ONCE} requests at a time": lambda: _at_once(
            lambda batch: client.nearest(batch, _K), batches
        ),
    }
    elapsed_s = alternate(contestants, args.rounds)
    base = "in this process"
    rows: list[Row] = []
    for name in contestants:
        ratios = np.divide(elapsed_s[base], elapsed_s[name])
        rate = _BATCH * len(batches) / statistics.median(elapsed_s[name])
        ratio = round(float(np.median(ratios)), 2)
        rows.append(
            {"search": name, "queries/s at batch 64": round(rate), "ratio": ratio}
        )
    singles = queries_QW[: args.requests, None]
    rows[0] |= _latencies("", lambda one: database.nearest(one, _K), singles)
    rows[1] |= _latencies("", lambda one: client.nearest(one, _K), singles)
    with_text = _latencies(
        "and a passage ", _searcher(client), singles[: len(singles) // 2]
    )
    rows[1] |= with_text
    conditions = describe_machine(("grpcio", "numpy", "scann")) | {
        "chunks": database.snapshot.index().size,
        "width": queries_QW.shape[1],
        "index": database.manifest["index"]["kind"],
        "index shards": database.snapshot.num_shards,
        "shard servers": args.shards,
        "k": _K,
        "rounds": args.rounds,
    }
    notes = ["ratio: median over rounds of the time in this process over the service's"]
    return Result(name="service", conditions=conditions, rows=rows, notes=notes)


def _check_equal(database: Database, client: RetrievalClient, batch_QW) -> None:
    found, expected = client.nearest(batch_QW, _K), database.nearest(batch_QW, _K)
    if not all(map(np.array_equal, found, expected)):
        raise ValueError("the service and the database find different chunks")


def _searcher(client: RetrievalClient) -> Callable[[np.ndarray], object]:
    """Searches, and reads text and source of the nearest: two calls."""
    return lambda one: [client.found(int(i)) for i in client.nearest(one, 1)[0][0]]


def _latencies(name: str, ask: Callable[[np.ndarray], object], singles) -> Row:
    """Milliseconds of requests one after another: median and 99th percentile."""
    took_ms = []
    for one in singles:
        start_s = time.perf_counter()
        ask(one)
        took_ms.append(1000 * (time.perf_counter() - start_s))
    p50, p99 = np.percentile(took_ms, [50, 99])
    return {
        f"{name}p50 ms": round(float(p50), 2),
        f"{name}p99 ms": round(float(p99), 2),
    }


def _at_once(ask: Callable[[np.ndarray], object], batches) -> None:
    """Asks for all batches, several at a time."""

    def work(start: int) -> None:
        for batch in batches[start::_REQUESTS_AT_ONCE]:
            ask(batch)

    threads = [
        threading.Thread(target=work, args=(start,))
        for start in range(_REQUESTS_AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def _served(folder: pathlib.Path, num_shards: int) -> Iterator[RetrievalClient]:
    """The service, for as long as the block runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run_there(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    progress(f"starting {num_shards} shard servers and a router")
    local = serve_local.Local()
    try:
        count = serve_local.shards_here(folder, num_shards)
        run_there(local.start(folder, count, 0, []))
        with RetrievalClient(f"grpc://127.0.0.1:{local.port}") as client:
            yield client
    finally:
        run_there(local.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _queries(database: Database, count: int) -> np.ndarray:
    """Rows of the database, moved a little."""
    rng = np.random.default_rng(1)
    shards = [
        np.load(path / "vectors.npy", mmap_mode="r")
        for path in database.snapshot.paths.shards("embeddings", "train")
    ]
    shard = shards[0]
    rows = np.sort(rng.integers(0, len(shard), count))
    queries_QW = np.asarray(shard[rows], np.float32)
    noise_QW = rng.standard_normal(queries_QW.shape, np.float32)
    queries_QW += 0.5 * noise_QW / np.sqrt(queries_QW.shape[1])
    queries_QW /= np.linalg.norm(queries_QW, axis=1, keepdims=True)
    return queries_QW[rng.permutation(count)]


def clustered(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Unit vectors in clusters of 50."""
    centres = rng.standard_normal((max(1, rows // 50), width), np.float32)
    vectors_TW = rng.standard_normal((rows, width), np.float32) * 0.5
    vectors_TW += centres[rng.integers(len(centres), size=rows)]
    return vectors_TW / np.linalg.norm(vectors_TW, axis=1, keepdims=True)


def write_database(folder: pathlib.Path, args: argparse.Namespace) -> pathlib.Path:
    """Writes a database that can be served: random tokens, vectors in clusters."""
    rng = np.random.default_rng(0)
    progress(f"indexing {args.rows} vectors in {args.shards} shards")
    vectors_TW = clustered(rng, args.rows, args.width)
    queries_QW = vectors_TW[rng.integers(0, args.rows, 400)]
    parts = np.array_split(np.arange(args.rows), args.shards)
    facts = []

    def write_index(name: str, shard: pathlib.Path) -> None:
        ids_T = parts[int(name)]
        built, fact, _ = sharded.build_shard(
            ids_T,
            vectors_TW[ids_T],
            args.index,
            recall_target=0.97,
            queries_QW=queries_QW,
        )
        built.save(shard)
        facts.append(fact)

    def write_vectors(name: str, shard: pathlib.Path) -> None:
        np.save(shard / "vectors.npy", vectors_TW.astype(np.float16))

    def write_tokenizer(name: str, shard: pathlib.Path) -> None:
        Tokenizer.train(code_chunks(500), 2000, shard / "tokenizer.model")

    writers: dict[str, tuple[list[str], Callable[[str, pathlib.Path], None]]] = {
        "tokenizer": (["all"], write_tokenizer),
        "documents": (["all"], lambda name, shard: _write_documents(shard, args.rows)),
        "chunks": (
            ["train-00000"],
            lambda name, shard: _write_chunks(shard, args.rows),
        ),
        "embeddings": (["train-00000"], write_vectors),
        "index": ([f"{number:05d}" for number in range(args.shards)], write_index),
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
        "embedding_width": args.width,
        "embedder": "minilm",
        "embedder_fingerprint": embedder.load_embedder("minilm").fingerprint,
        "index": sharded.combined_facts(facts),
    }
    write_sealed(folder / "manifest.json", manifest)
    return folder


def _work(write: Callable[[str, pathlib.Path], None]):
    """What an engine runs: as the function, which tells of no rows."""

    def work(name: str, shard: pathlib.Path) -> Iterator[int | str]:
        write(name, shard)
        yield from ()

    return work


def _write_chunks(shard: pathlib.Path, rows: int) -> None:
    rng = np.random.default_rng(2)
    columns = {
        "tokens": rng.integers(3, 260, (rows, _CHUNK_LEN), np.int32),
        "lengths": np.full(rows, _CHUNK_LEN, np.int32),
        "documents": np.arange(rows) // _DOCUMENT_CHUNKS,
        "offsets": np.arange(rows) % _DOCUMENT_CHUNKS * 4 * _CHUNK_LEN,
    }
    for name, column in columns.items():
        np.save(shard / f"{name}.npy", column, allow_pickle=False)


def _write_documents(folder: pathlib.Path, rows: int) -> None:
    """Documents of twenty chunks."""
    names = [f"document-{row}" for row in range(-(-rows // _DOCUMENT_CHUNKS))]
    same = {name: names for name in ("id", "title", "uri", "licence")}
    table = pa.table(same | {"size_bytes": [_DOCUMENT_CHUNKS * 256] * len(names)})
    pyarrow.parquet.write_table(table, folder / "train-00000.parquet")
