"""Servers of a database in this process: an event loop on a thread of its own."""

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from data_pipeline.database import Database
from data_pipeline.service import router, shard_server
from data_pipeline.service.routing import replica_set
from data_pipeline.service.server import server
from data_pipeline.service.server.endpoints import Endpoint
from data_pipeline.service.server.observability import Log, Metrics
from data_pipeline.service.wire import messages


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
        self._call(lambda: made.switch.follow(follow_s))
        endpoint = made.endpoint(most=most, timeout_s=20)
        return self._serve(
            endpoint, server.Listening(drain_s=5, **listening), metrics, made
        )

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
