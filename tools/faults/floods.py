"""What others get while a service is flooded, and what the servers hold and how they end.

Each flood meets servers of its own, so that their memory and their end are its own.
"""

import argparse
import contextlib
import functools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from data_pipeline.service.wire import retrieval_pb2 as pb
from tools.benchmark.result import Row, progress
from tools.faults import load, servers, small_database, toy_embedder

_DEADLINE_S = 5.0  # of what floods
_CANCELLED_AFTER_S = 0.02
_SOCKETS = 500
_MOST_END_S = 60.0
_WORDS = "the clocks of four towers strike the hours of a long day "


def _texts(number: int, words: int) -> pb.SearchRequest:
    text = (_WORDS * (words // 11 + 1))[: 5 * words]
    return pb.SearchRequest(texts=pb.Texts(texts=[text] * number), k=10)


def _search(request: pb.SearchRequest, stub) -> None:
    stub.Search(request, timeout=_DEADLINE_S)


def _passages(stub) -> None:
    stub.Passages(
        pb.PassagesRequest(chunk_ids=[1] * 10_000, passage_len=4096),
        timeout=_DEADLINE_S,
    )


def _cancelled(stub) -> None:
    asked = stub.Search.future(_texts(256, 120), timeout=_DEADLINE_S)
    time.sleep(_CANCELLED_AFTER_S)
    asked.cancel()


def _tokens() -> pb.SearchRequest:
    chunks = pb.TokenChunks(data=b"\5\0\0\0" * (20 << 16), chunk_len=1 << 16)
    return pb.SearchRequest(token_chunks=chunks, k=10)


def _bytes() -> pb.SearchRequest:
    return pb.SearchRequest(vectors=pb.Vectors(data=bytes(60_000_000), width=32), k=10)


# Flood -> how many clients ask at once, and what each asks again and again.
_FLOODS: dict[str, tuple[int, Callable[[], Callable]]] = {
    "none": (0, lambda: _passages),
    "2,048 texts of 120 words": (3, lambda: functools.partial(_search, _texts(2048, 120))),
    "single texts of 40 clients": (40, lambda: functools.partial(_search, _texts(1, 120))),
    "20 queries of 65,536 tokens": (2, lambda: functools.partial(_search, _tokens())),
    "10,000 passages of 4,096 tokens": (3, lambda: _passages),
    "messages of 60 MB": (4, lambda: functools.partial(_search, _bytes())),
    "cancelled requests": (8, lambda: _cancelled),
}  # fmt: skip
_IDLE, _ALL = f"{_SOCKETS} idle sockets", "many kinds at once"


def rows(scratch: Path, args: argparse.Namespace, notes: list[str]) -> list[Row]:
    """Gives a row for each flood."""
    with toy_embedder.in_place(args.embedder):
        corpus = small_database.write_corpus(scratch / "corpus", args.seed)
        folder = scratch / "database"
        small_database.make(corpus, folder, embedder=args.embedder)
    return [_row(flood, folder, args) for flood in (*_FLOODS, _IDLE, _ALL)]


def _row(flood: str, folder: Path, args: argparse.Namespace) -> Row:
    progress(f"flood: {flood}")
    floods = list(_FLOODS.values()) if flood == _ALL else [_FLOODS.get(flood)]
    service = servers.Service(folder, args.queue, replicas=1, embedder=args.embedder)
    with contextlib.closing(service):
        idle = _SOCKETS if flood in (_IDLE, _ALL) else 0
        sent: list[str] = []
        with contextlib.ExitStack() as flooding:
            flooding.enter_context(_idle_sockets(service.port, idle))
            for clients, make in filter(None, floods):
                asking = _flooded(service.port, clients, make(), sent)
                flooding.enter_context(asking)
            others = load.under_load(
                service.port,
                _texts(1, 8),
                (),
                clients=args.clients,
                timeout_s=args.timeout_s,
                seconds=args.seconds,
            )
            end_s = service.terminate(_MOST_END_S)
        return {
            "flood": flood,
            "sent": len(sent),
            "answered": sent.count("OK"),
            "others": len(others),
            "others failed": others.errors(),
            "others p50 ms": others.percentile_ms(50),
            "others p99 ms": others.percentile_ms(99),
            "router peak MB": service.peaks_mb[0],
            "shard peak MB": max(service.peaks_mb[1:]),
            "end s": round(end_s, 1),
        }


@contextlib.contextmanager
def _idle_sockets(port: int, number: int) -> Iterator[None]:
    with contextlib.ExitStack() as opened:
        for _ in range(number):
            opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield


@contextlib.contextmanager
def _flooded(
    port: int, clients: int, send: Callable, sent: list[str]
) -> Iterator[None]:
    """Keeps clients sending; notes the outcome of each request."""
    until = threading.Event()

    def flood(_) -> None:
        with load.connected(port) as stub:
            while not until.is_set():
                try:
                    send(stub)
                    sent.append("OK")
                except grpc.RpcError as error:
                    sent.append(error.code().name)
                    time.sleep(0.01)  # refused: no busy loop

    with ThreadPoolExecutor(max(1, clients)) as pool:
        asking = pool.map(flood, range(clients))
        try:
            yield
        finally:
            until.set()
        list(asking)
