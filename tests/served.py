"""Servers of a database: in this process, on a thread of their own, or as processes."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.database import Database
from data_pipeline.service import router, shard_server
from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.routing import replica_set
from data_pipeline.service.server import server
from data_pipeline.service.server.endpoints import Endpoint
from data_pipeline.service.server.observability import Log, Metrics
from data_pipeline.service.wire import messages

NUM_SERVERS = 3  # before which the router stands that tests share
FOLLOW_S = 0.05


@dataclasses.dataclass
class Served:
    """A server that was started by `Servers`."""

    port: int
    metrics: Metrics
    server: server.Server
    service: Any = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class Servers:
    """Starts servers and ends them all."""

    def __init__(self) -> None:
        self.said: list[str] = []  # lines of all logs
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._closing = contextlib.AsyncExitStack()

    def run(self, work: Coroutine) -> Any:
        """Runs a coroutine where the servers run."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _call(self, function: Callable[[], object]) -> None:
        """Calls a function where the servers run."""

        async def call() -> None:
            function()

        self.run(call())

    def _serve(self, endpoint: Endpoint, listening, metrics, service) -> Served:
        log = Log("test", self.said.append)
        started = self.run(server.Server.start(listening, [endpoint], metrics, log))
        self._closing.push_async_callback(started.stop)
        return Served(started.port, metrics, started, service)

    def shard(
        self,
        database: Database,
        shard: int,
        num_shards: int,
        *,
        waiting: int = 64,
        threads: int = 1,
        nearest=None,
        follow_s: float = 0.0,
        **listening,
    ) -> Served:
        """A shard server; `nearest` takes the place of its search."""
        limits, metrics = messages.Limits(), Metrics()
        service = shard_server.ShardService(
            database, shard, num_shards, threads=threads, limits=limits
        )
        if nearest is not None:
            service._nearest = nearest(service._nearest)
        endpoint = service.endpoint(metrics, waiting=waiting, timeout_s=20)
        listening = server.Listening(drain_s=5, **listening)
        made = self._serve(endpoint, listening, metrics, service)
        made.server.closing.callback(service.close)
        self._call(
            lambda: service.follow(follow_s, metrics, Log("test", self.said.append))
        )
        return made

    def router(
        self,
        database: Database,
        shards: str,
        *,
        hedge_s: float | None = None,
        credentials=None,
        most: int = 64,
        follow_s: float = 0.0,
        **listening,
    ) -> Served:
        """A router before the shards at the addresses."""
        metrics = Metrics()

        async def make() -> router.Router:
            log = Log("router", self.said.append)
            sets = replica_set.connect(
                shards,
                credentials=credentials,
                token=listening.get("token"),
                hedge_s=hedge_s,
                metrics=metrics,
                log=log,
            )
            return router.Router(
                database,
                sets,
                embed_window_s=0.001,
                limits=messages.Limits(),
                metrics=metrics,
                log=log,
            )

        made = self.run(make())
        self._closing.push_async_callback(made.close)
        endpoint = made.endpoint(most=most, timeout_s=20)
        served = self._serve(
            endpoint, server.Listening(drain_s=5, **listening), metrics, made
        )
        ready = functools.partial(served.server.set_ready, router.SERVICE)
        self._call(lambda: made.switch.follow(follow_s, ready))
        return served

    def stop(self, served: Served) -> None:
        """Ends one server now."""
        self.run(served.server.stop())

    def close(self) -> None:
        """Ends all."""
        self.run(self._closing.aclose())
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    """Ends what still runs, as `asyncio.run` does."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@contextlib.contextmanager
def servers() -> Iterator[Servers]:
    """Servers that end with the block."""
    made = Servers()
    try:
        yield made
    finally:
        made.close()


class Gate:
    """A shard's search that stands still while the gate is shut."""

    def __init__(self):
        self.open, self.waiting = threading.Event(), threading.Semaphore(0)

    def __call__(self, nearest):
        def search(*arguments, **options):
            self.waiting.release()
            assert self.open.wait(30)
            return nearest(*arguments, **options)

        return search


def client_of(served: Served, **options) -> RetrievalClient:
    return RetrievalClient(f"grpc://{served.address}", **options)


def following(running: Servers, folder: Path) -> tuple[list[Served], Served]:
    """Two shards and a router that follow the database in a folder."""
    shards = [
        running.shard(Database.open(folder), shard, 2, follow_s=FOLLOW_S)
        for shard in range(2)
    ]
    addresses = ",".join(shard.address for shard in shards)
    router = running.router(Database.open(folder), addresses, follow_s=FOLLOW_S)
    return shards, router


def version_of(served: Served) -> int:
    return int(served.metrics.value("retro_version"))


def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Waits until it holds."""
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


@contextlib.contextmanager
def process(module: str, *flags: str, package: str = "data_pipeline.service"):
    """A server process that serves, and what it said so far; killed at the end."""
    started = subprocess.Popen(
        [sys.executable, "-m", f"{package}.{module}", *flags],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[dict | str] = []
    try:
        while not (said and isinstance(said[-1], dict) and "port" in said[-1]):
            line = started.stderr.readline()
            assert line, said
            said.append(json.loads(line) if line.startswith("{") else line)
        yield started, said
    finally:
        started.send_signal(signal.SIGCONT)
        started.kill()
        started.wait()
        started.stdin.close()
        started.stderr.close()


def refusal(main: Callable, given: list[str], flags: list[str], capsys) -> str:
    """What a command says of wrong flags: one line, with status 2."""
    try:
        status = main([*given, *flags])
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err
    assert status == 2
    lines = [line for line in said.splitlines() if not line.startswith("{")]
    assert len(lines) == 1
    return said
