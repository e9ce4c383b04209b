"""Queries a second and latencies of the retrieval service, on this machine.

    python -m tools.benchmark service --database=DIR --shards 1 2 4

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from data_pipeline.database import Database
from data_pipeline.service import serve_local
from data_pipeline.service.client import RetrievalClient
from tools.benchmark.result import (
    Result,
    Row,
    alternate,
    describe_machine,
    positive,
    progress,
    ratio,
)
from tools.benchmark.synthetic import write_database

_K = 10
_BATCH = 64
_REQUESTS_AT_ONCE = 4  # batches under way from one client


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `service`."""
    command.add_argument("--database", type=pathlib.Path, help="instead of random one")
    command.add_argument(
        "--shards", type=positive, nargs="+", default=[4], help="numbers of servers"
    )
    command.add_argument("--rows", type=positive, default=100_000)
    command.add_argument("--width", type=positive, default=384)
    command.add_argument("--index", default="auto", help="auto, exact or scann")
    command.add_argument("--batches", type=positive, default=40, help="of a round")
    command.add_argument("--requests", type=positive, default=500, help="of one vector")


def run(args: argparse.Namespace) -> Result:
    """Gives queries a second in batches of 64, and latencies of requests of one vector."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.database or write_database(
            pathlib.Path(scratch), args.rows, args.width, max(args.shards), args.index
        )
        database = Database.open(folder)
        queries_QW = _queries(database, max(_BATCH * args.batches, args.requests))
        database.nearest(queries_QW[:_BATCH], _K)  # loads the index
        rows: list[Row] = []
        for num_servers in args.shards:
            with _served(folder, num_servers) as client:
                for row in _rows(args, database, client, queries_QW):
                    rows.append({"shard servers": num_servers} | row)
        conditions = describe_machine(("grpcio", "numpy", "scann")) | {
            "chunks": database.snapshot.index().size,
            "index": database.manifest["index"]["kind"],
            "index shards": database.snapshot.num_shards,
            "rounds": args.rounds,
        }
    notes = ["ratio: the time in this process over the service's, of each round"]
    return Result(name="service", conditions=conditions, rows=rows, notes=notes)


def _rows(
    args, database: Database, client: RetrievalClient, queries_QW: np.ndarray
) -> list[Row]:
    """Measures the search in this process, and the service beside it."""
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
    base_s = elapsed_s["in this process"]
    queries = _BATCH * len(batches)
    rows: list[Row] = [
        {
            "search": name,
            "chunks": database.snapshot.index().size,
            "queries/s at batch 64": round(queries / statistics.median(took_s)),
            "in process queries/s": round(queries / statistics.median(base_s)),
            "ratio": ratio(base_s, took_s),
        }
        for name, took_s in elapsed_s.items()
    ]
    singles = queries_QW[: args.requests, None]
    alone = _latencies("", lambda one: database.nearest(one, _K), singles)
    rows[0] |= alone
    rows[1] |= {f"in process {name}": value for name, value in alone.items()}
    rows[1] |= _latencies("", lambda one: client.nearest(one, _K), singles)
    rows[1] |= _latencies("and a passage ", _two_calls(client), singles[::2])
    return rows


def _check_equal(database: Database, client: RetrievalClient, batch_QW) -> None:
    found, expected = client.nearest(batch_QW, _K), database.nearest(batch_QW, _K)
    if not all(map(np.array_equal, found, expected)):
        raise ValueError("the service and the database find different chunks")


def _two_calls(client: RetrievalClient) -> Callable[[np.ndarray], object]:
    """Gives a search for the nearest chunk that then reads its text and source."""
    return lambda one: [client.found(int(i)) for i in client.nearest(one, 1)[0][0]]


def _latencies(name: str, ask: Callable[[np.ndarray], object], singles) -> Row:
    """Sends one request after another; gives the median and 99th percentile in ms."""
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
    """Sends all batches, several at a time."""

    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        for _ in pool.map(ask, batches):
            pass


@contextmanager
def _served(folder: pathlib.Path, num_shards: int) -> Iterator[RetrievalClient]:
    """Runs the service for as long as the block runs."""
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
    """Draws rows of the database and moves them a little."""
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
