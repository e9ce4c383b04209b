"""Serves some shards of a database's index to routers.

    python -m data_pipeline.service.shard_server --database=DIR --shard=0 --num_shards=4

Server `shard` of `num_shards` holds the shards i of the index with i % num_shards == shard
in memory and no others; text and tokens stay on disk. Searches run in threads: ScaNN and
numpy let go of the interpreter's lock. A new version of the database is opened beside the
one that is served (`version_follower.py`).
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import grpc

from data_pipeline.database import Database
from data_pipeline.service.server import server
from data_pipeline.service.server.admission import Admission, Refused
from data_pipeline.service.server.endpoints import Call, Endpoint
from data_pipeline.service.server.observability import Log, Metrics
from data_pipeline.service.server.version_follower import Follower
from data_pipeline.service.shards.held_versions import HeldVersions, ShardVersion
from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb
from data_pipeline.storage.printing import protect_streams

SERVICE = pb.DESCRIPTOR.services_by_name["Shard"].full_name
_LONGEST_LEASE_S = 60.0  # a router renews its lease long before
_HEARD_S = 2.0  # in which routers hear of the next version, and hold it
_EVERY_S = 0.5  # at least so often it looks what is held no more

_Made = TypeVar("_Made")


class ShardService:
    """Answers for some shards of a database's index, in one version of it or two."""

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
        if num_shards > database.snapshot.num_shards:
            raise ValueError(
                f"num_shards is {num_shards}, the index of {database.folder} has "
                f"{database.snapshot.num_shards} shards: serve it with as many or fewer"
            )
        self._shard, self._num_shards, self._limits = shard, num_shards, limits
        self.versions = HeldVersions(ShardVersion(database, shard, num_shards))
        self._num_threads = threads
        self._searching = concurrent.futures.ThreadPoolExecutor(threads, "search")
        self._reading = concurrent.futures.ThreadPoolExecutor(threads, "read")
        self._follower: Follower | None = None
        self._waiting: int | None = None  # version that there was no room for
        self._next: pb.DatabaseState | None = (
            None  # in force, as far as it can be opened
        )
        self._leases_changed = asyncio.Event()

    def endpoint(self, metrics: Metrics, *, waiting: int, timeout_s: float) -> Endpoint:
        """Gives the methods; `waiting` of a kind queue for a thread, more are refused."""
        shares = {
            pb.ShardSearchRequest: Admission(
                self._num_threads, waiting, metrics, "vectors"
            ),
            pb.PassagesRequest: Admission(
                self._num_threads, waiting, metrics, "passages"
            ),
        }
        return Endpoint(
            SERVICE,
            {
                "Search": (pb.ShardSearchRequest, self._search),
                "Passages": (pb.PassagesRequest, self._passages),
                "Hold": (pb.HoldRequest, self._hold),
            },
            lambda request: shares.get(type(request)),
            metrics,
            timeout_s,
        )

    def follow(self, follow_s: float, metrics: Metrics, log: Log) -> None:
        """Opens new versions from now on, unless `follow_s` is 0; in an event loop."""
        folder = self.versions.newest.database.folder
        metrics.version.set(self.versions.newest.number)
        self._follower = Follower(folder, follow_s=follow_s, metrics=metrics, log=log)
        if follow_s > 0:
            self._follower.keep(self._keep_up(self._follower, follow_s, metrics, log))

    async def _keep_up(
        self, follower: Follower, follow_s: float, metrics: Metrics, log: Log
    ) -> None:
        """Opens what is wanted and gives up what nobody holds, time and again."""
        clock = asyncio.get_running_loop().time
        in_force, look_at_s = None, clock()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(follow_s, _EVERY_S)):
                    await self._leases_changed.wait()
                    look_at_s = clock()  # a router went over: what is newest now?
            self._leases_changed.clear()
            if self.versions.is_led(clock()):
                self._next = in_force = None
            elif clock() >= look_at_s:
                in_force, look_at_s = await follower.in_force(), clock() + follow_s
            wanted = self.versions.wanted(clock())
            if in_force is not None and in_force not in wanted:
                wanted.append(in_force)
            named = self._next
            for number in filter(follower.is_due, wanted):
                await self._open(follower, log, number, is_next=number == in_force)
            if self._next != named:  # until a router holds it, or had the time to
                look_at_s = clock() + max(follow_s, _HEARD_S)
            for number in self.versions.give_up_unheld(in_force, clock()):
                log("version_given_up", version=number)
            metrics.version.set(self.versions.newest.number)

    async def _open(
        self, follower: Follower, log: Log, number: int, *, is_next: bool
    ) -> None:
        """Opens a version if it is not held, there is room and it can be opened.

        Args:
            is_next: routers are told of it while it is opened.
        """
        clock = asyncio.get_running_loop().time
        start_s, held = clock(), self.versions.numbered(number)
        if held is not None:
            self._next = held.state if is_next else self._next
            return
        if not self.versions.has_room(start_s):
            self._log_wait(log, number)
            return
        beside = self.versions.newest.database.beside
        found = await follower.attempt(number, functools.partial(beside, number))
        del beside  # else what is given up below would stay in memory
        if found is None:
            return
        # A router may have asked for what was to go while the files were looked at.
        if not self.versions.make_room(clock()):
            self._log_wait(log, number)
            return
        if is_next:
            self._next = messages.state_of(found)
        version = await follower.attempt(
            number, lambda: ShardVersion(found, self._shard, self._num_shards)
        )
        if version is None:
            self._next = None if is_next else self._next
            return
        self.versions.put(version)
        log(
            "version_opened",
            version=number,
            index_shards=version.index_shards,
            took_s=round(clock() - start_s, 3),
            answers_for=[state.version for state in self.versions.states],
        )

    def _log_wait(self, log: Log, number: int) -> None:
        if self._waiting != number:
            self._waiting = number
            log("version_waits", version=number)

    def close(self) -> None:
        """Opens no more versions."""
        if self._follower is not None:
            self._follower.close()

    async def _hold(self, request: pb.HoldRequest, call: Call):
        until_s = asyncio.get_running_loop().time() + min(
            request.hold_s, _LONGEST_LEASE_S
        )
        if self.versions.lease(
            request.holder, list(request.databases), until_s, leads=request.leads
        ):
            self._leases_changed.set()
        return pb.HoldResponse(databases=self.versions.states, next=self._next)

    async def _search(self, request: pb.ShardSearchRequest, call: Call):
        version = self._asked(request.database)
        mine = (self._shard, self._num_shards)
        asked = (request.shard, request.num_shards)
        if asked != mine:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this is shard {mine[0]} of {mine[1]}, not {asked[0]} of {asked[1]}: "
                "the router's --shards must be in order",
            )
        vectors_QW = messages.unpack_vectors(
            request.vectors, version.width, self._limits
        )
        messages.check_search(
            request.k,
            len(vectors_QW),
            version.width,
            request.exclude_documents,
            self._limits,
        )
        excluded = list(request.exclude_documents)
        return await _in_thread(
            self._searching,
            lambda _: self._nearest(version, vectors_QW, request.k, excluded),
        )

    def _nearest(self, version: ShardVersion, vectors_QW, k: int, excluded: list[str]):
        return messages.pack_found(*version.nearest(vectors_QW, k, excluded), k)

    async def _passages(self, request: pb.PassagesRequest, call: Call):
        version, limits = self._asked(request.database), self._limits
        call.reserve(messages.check_passages(request, version.database, limits))
        passages = await _in_thread(
            self._reading,
            lambda is_given_up: messages.read_passages(
                version.database,
                request.chunk_ids,
                request.passage_len,
                sources=not request.without_sources,
                most_bytes=limits.answer_bytes,
                is_given_up=is_given_up,
            ),
        )
        return pb.PassagesResponse(passages=passages, database=version.state)

    def _asked(self, state: pb.DatabaseState) -> ShardVersion:
        """The version that a request is for."""
        version = self.versions.get(state)
        if version is None:
            had = " and ".join(
                messages.describe_state(held) for held in self.versions.states
            )
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this server has {had}, the router {messages.describe_state(state)}",
            )
        return version


async def _in_thread(
    threads: concurrent.futures.Executor, work: Callable[[Callable[[], bool]], _Made]
) -> _Made:
    """Runs work in a thread; given up, it keeps its place until the thread is free.

    Args:
        work: takes a function that says whether it was given up.
    """
    given_up = threading.Event()
    future = threads.submit(work, given_up.is_set)
    result = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(result)
    except asyncio.CancelledError:
        given_up.set()
        if not future.cancel():
            await asyncio.wait([result])
            result.exception()  # nobody waits for it any more
        raise


def _parser() -> argparse.ArgumentParser:
    parser = server.parser_of("shard_server", (__doc__ or "").splitlines()[0])
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--shard", type=int, required=True)
    parser.add_argument("--num_shards", type=server.positive, required=True)
    parser.add_argument(
        "--threads", type=server.positive, default=len(os.sched_getaffinity(0))
    )
    parser.add_argument(
        "--queue",
        type=int,
        default=64,
        help="requests of a kind that wait; more are refused",
    )
    server.add_arguments(parser)
    return parser


async def start(args: argparse.Namespace) -> server.Stoppable:
    """Opens the database and serves, as the flags say."""
    listening = server.listening_of(args)
    server.check_port(listening.host, listening.port)  # before all that takes time
    service = ShardService(
        Database.open(args.database),
        args.shard,
        args.num_shards,
        threads=args.threads,
        limits=server.limits_of(args),
    )
    metrics, log = Metrics(), Log(f"shard-{args.shard}")
    endpoint = service.endpoint(metrics, waiting=args.queue, timeout_s=args.timeout_s)
    index_shards = service.versions.newest.index_shards
    log("loaded", index_shards=index_shards, database=str(args.database))
    started = await server.Server.start(listening, [endpoint], metrics, log)
    started.closing.callback(service.close)
    service.follow(args.follow_s, metrics, log)
    return started


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until a signal; gives the exit status."""
    args = _parser().parse_args(argv)
    return server.run(lambda: start(args), until_eof=args.until_eof)


if __name__ == "__main__":
    protect_streams(outlives_readers=True)
    sys.exit(main())
