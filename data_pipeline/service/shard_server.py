"""Serves some shards of a database's index to routers.

    python -m data_pipeline.service.shard_server --database=DIR --shard=0 --num_shards=4

Server `shard` of `num_shards` holds the shards i of the index with i % num_shards == shard
in memory and no others; text and tokens stay on disk. Searches run in threads: ScaNN and
numpy let go of the interpreter's lock.
"""

import argparse
import asyncio
import concurrent.futures
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import numpy as np

from data_pipeline.database import Database
from data_pipeline.service import messages, serving
from data_pipeline.service import retrieval_pb2 as pb
from data_pipeline.service.endpoints import Admission, Endpoint, Refused
from data_pipeline.service.observing import Log, Metrics

SERVICE = pb.DESCRIPTOR.services_by_name["Shard"].full_name


class ShardService:
    """Answers for some shards of an open database's index."""

    def __init__(
        self,
        database: Database,
        shard: int,
        num_shards: int,
        *,
        threads: int,
        limits: messages.Limits,
    ):
        """Loads the shards.

        Args:
            shard, num_shards: which shards of the index: i with i % num_shards == shard.
            threads: searches at once.
        Raises:
            ValueError: if there is no such server, or nothing for it to hold.
        """
        if not 0 <= shard < num_shards:
            raise ValueError(f"shard must lie in 0..{num_shards - 1}, is {shard}")
        if num_shards > database.num_shards:
            raise ValueError(
                f"num_shards is {num_shards}, the index of {database.folder} has "
                f"{database.num_shards} shards: serve it with as many or fewer"
            )
        self._database, self._limits = database, limits
        self._shard, self._num_shards = shard, num_shards
        self.index_shards = tuple(range(shard, database.num_shards, num_shards))
        self._width = database.index_of(self.index_shards).width
        self._state = messages.state_of(database)
        self._num_threads = threads
        self._threads = concurrent.futures.ThreadPoolExecutor(threads, "search")
        self._warm_up()

    def _warm_up(self) -> None:
        """Loads what the first request would wait for."""
        ids = self._database.documents().column("id").to_pylist()
        first = [name for name in ids[:1] if self._database.has_document(name)]
        vectors_QW = np.ones((1, self._width), np.float32)
        self._database.nearest(
            vectors_QW, 1, exclude_documents=first, shards=self.index_shards
        )
        if len(self._database.chunks()):
            messages.read_passages(self._database, [0], 0, sources=True)

    def endpoint(self, metrics: Metrics, *, waiting: int, timeout_s: float) -> Endpoint:
        """The methods; `waiting` requests queue for a thread, more are refused."""
        return Endpoint(
            SERVICE,
            {
                "Search": (pb.ShardSearchRequest, self._search),
                "Passages": (pb.PassagesRequest, self._passages),
            },
            Admission(self._num_threads, waiting, metrics),
            metrics,
            timeout_s,
        )

    async def _search(self, request: pb.ShardSearchRequest, timeout_s: float):
        self._check_state(request.database)
        mine = (self._shard, self._num_shards)
        asked = (request.shard, request.num_shards)
        if asked != mine:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this is shard {mine[0]} of {mine[1]}, not {asked[0]} of {asked[1]}: "
                "the router's --shards must be in order",
            )
        vectors_QW = messages.unpack_vectors(request.vectors, self._width, self._limits)
        excluded = list(request.exclude_documents)
        messages.check_search(request.k, len(vectors_QW), excluded, self._limits)
        search = functools.partial(self._nearest, vectors_QW, request.k, excluded)
        return await self._in_thread(search)

    def _nearest(self, vectors_QW, k: int, excluded: list[str]):
        try:
            found = self._database.nearest(
                vectors_QW, k, exclude_documents=excluded, shards=self.index_shards
            )
        except ValueError as error:  # a document that is not there
            said = str(error).replace(str(self._database.folder), "the database")
            raise ValueError(f"exclude_documents: {said}") from error
        return messages.pack_found(*found, k)

    async def _passages(self, request: pb.PassagesRequest, timeout_s: float):
        self._check_state(request.database)
        chunk_ids, passage_len = list(request.chunk_ids), request.passage_len
        messages.check_passages(chunk_ids, passage_len, self._database, self._limits)
        passages = await self._in_thread(
            functools.partial(
                messages.read_passages,
                self._database,
                chunk_ids,
                passage_len,
                sources=not request.without_sources,
            )
        )
        return pb.PassagesResponse(passages=passages, database=self._state)

    def _check_state(self, asked: pb.DatabaseState) -> None:
        if asked != self._state:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this server has {messages.said(self._state)}, the router "
                f"{messages.said(asked)}",
            )

    async def _in_thread(self, work: Callable):
        """Runs in a thread. When given up, what runs still keeps its place until it ends."""
        future = self._threads.submit(work)
        result = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            if not future.cancel():
                await asyncio.wait([result])
                result.exception()  # nobody waits for it any more
            raise


def _parser() -> argparse.ArgumentParser:
    parser = serving.parser_of("shard_server", (__doc__ or "").splitlines()[0])
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--shard", type=int, required=True)
    parser.add_argument("--num_shards", type=serving.positive, required=True)
    parser.add_argument(
        "--threads", type=serving.positive, default=len(os.sched_getaffinity(0))
    )
    parser.add_argument(
        "--queue", type=int, default=64, help="requests that wait; more are refused"
    )
    serving.add_arguments(parser)
    return parser


async def start(args: argparse.Namespace) -> serving.Server:
    """Opens the database and serves, as the flags say."""
    listening = serving.listening_of(args)
    serving.check_port(listening.host, listening.port)  # before all that takes time
    service = ShardService(
        Database.open(args.database),
        args.shard,
        args.num_shards,
        threads=args.threads,
        limits=serving.limits_of(args),
    )
    metrics, log = Metrics(), Log(f"shard-{args.shard}")
    endpoint = service.endpoint(metrics, waiting=args.queue, timeout_s=args.timeout_s)
    log("loaded", index_shards=service.index_shards, database=str(args.database))
    return await serving.Server.start(listening, [endpoint], metrics, log)


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until a signal; gives the exit status."""
    args = _parser().parse_args(argv)
    return serving.command(lambda: start(args), until_eof=args.until_eof)


if __name__ == "__main__":
    sys.exit(main())
