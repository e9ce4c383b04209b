"""The way in which servers follow a database that changes while they serve it.

A server opens a new version beside the old one, on a thread of its own; what both have in
common is in memory once.

**One server leads.** The first shard server that is there looks every `follow_s` seconds
which version is in force. **Routers** tell each shard server twice a second which versions
they need (`Hold`) and hear which it has; the leading one also names the version that comes
next. A router opens that and holds it, so the **other shard servers** open it too; once every
shard that is there has it, the next request is answered from it, and those under way are
finished in the old one (`served_version.py`). Versions that are published meanwhile are
passed over: the leading server looks again when the routers have gone over.

A shard server has at most two versions and answers for both (`held_versions.py`). It never
gives up one that a router holds for another (but after a minute, for a router that can't go
on); what no router holds for 5 s it gives up, and closes its files with it. Without routers
it follows the version in force by itself.

So no answer mixes versions, and none is lost for the switch. With `switch` = the time to load
a version and one second more, a change is served at the latest `follow_s` + 2 x `switch` after
it was published, however many come: one switch may be under way, the next one goes to what is
newest then. What was deleted and compacted is closed in all servers 5 s later, or when the
last request that began before is done (`--timeout_s`). If a server does not answer, each
switch takes 1 s more, and 5 s if that is so for the first time.

A version that can't be opened is logged, counted and tried again with growing pauses; the
old one stays. Files that `compact` removes stay readable to who has them open, but for
network file systems that take them away from other hosts: there compact after all servers
have followed.
"""

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeVar

from data_pipeline.database import versions
from data_pipeline.service.server.observability import Log, Metrics

_LONGEST_PAUSE_S = 60.0

_Made = TypeVar("_Made")


class Follower:
    """Runs what opens new versions away from the event loop, and what looks for them."""

    def __init__(self, folder: Path, *, follow_s: float, metrics: Metrics, log: Log):
        """`follow_s` is the first pause after a failure."""
        self._folder, self._follow_s = folder, follow_s
        self._metrics, self._log = metrics, log
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "follow")
        self._logged: str | None = None  # error that was logged last
        # Versions that could not be opened: when each is tried again, and the pause then.
        self._put_off: dict[int | None, tuple[float, float]] = {}
        self._tasks: list[asyncio.Task] = []

    def keep(self, work: Coroutine) -> None:
        """Runs work that never ends by itself; an end, which is a bug, is logged."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._log_end)
        self._tasks.append(task)

    def _log_end(self, task: asyncio.Task) -> None:
        if not task.cancelled():
            self._metrics.version_failures.inc()
            self._log("follows_no_more", error=repr(task.exception()))

    async def in_force(self) -> int | None:
        """Number of the version in force; None if it can't be read."""
        return await self.attempt(None, lambda: versions.in_force(self._folder))

    async def is_there(self, number: int) -> bool:
        """Whether a version can still be opened: compacting gives up older ones."""
        there = await self.attempt(None, lambda: versions.numbers(self._folder))
        return there is None or number in there

    def is_due(self, number: int) -> bool:
        """Whether a version may be tried: it has not failed, or the pause is over."""
        retry_at_s, _ = self._put_off.get(number, (0.0, 0.0))
        return asyncio.get_running_loop().time() >= retry_at_s

    async def attempt(
        self, number: int | None, work: Callable[[], _Made]
    ) -> _Made | None:
        """Runs `work` on the thread and gives its result; None if it fails.

        Args:
            number: of the version that is opened, which is then put off for a while.
        """
        loop = asyncio.get_running_loop()
        try:
            made = await loop.run_in_executor(self._thread, work)
        except (ValueError, OSError) as error:
            self._metrics.version_failures.inc()
            if str(error) != self._logged:
                self._logged = str(error)
                self._log("version_failed", version=number, error=str(error))
            _, pause_s = self._put_off.get(number, (0.0, self._follow_s))
            longer_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self._put_off[number] = (loop.time() + pause_s, longer_s)
            return None
        if number is not None:
            self._logged = None
            self._put_off.clear()
        return made

    def close(self) -> None:
        """Stops looking."""
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
