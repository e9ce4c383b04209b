"""The way in which servers follow a database that changes while they serve it.

Every few seconds a server looks which version is in force. It opens a new one beside the
old one, on a thread of its own; what both have in common is in memory once.

A **shard server** has at most two versions and answers for both (`held_versions.py`). A
**router** answers from one. It tells the shards twice a second which versions it needs
(`Hold`), and hears which they have; once every shard that is there has the new one, the
next request is answered from it, and those under way are finished in the old one
(`served_version.py`). A shard gives up a version that no router has asked it to hold lately.

So no answer mixes versions, and none is lost for the switch. After a change is published
nothing is found in the old version any more when the slowest shard has looked (`follow_s`)
and loaded what is new, and the router has heard of it (0.5 s; 1.5 s if a replica does not
answer, 5 s if that is so for the first time). A shard that has two versions which are both
asked for, from a change just before, waits until the requests in the older one are done
(5 s, if the router that asked for it is gone); a minute at most, then it gives that one up.

A version that can't be opened is logged, counted and tried again with growing pauses; the
old one stays. Files that `compact` removes stay readable to who has them open, but for
network file systems that take them away from other hosts: there compact after all servers
have followed.
"""

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TypeVar

from data_pipeline.database import versions
from data_pipeline.service.server.observability import Log, Metrics

_LONGEST_PAUSE_S = 60.0

_Made = TypeVar("_Made")


class Follower:
    """Looks for new versions, and runs what opens them, away from the event loop."""

    def __init__(self, folder: Path, *, follow_s: float, metrics: Metrics, log: Log):
        """`follow_s` is the pause between two looks; 0 never looks."""
        self._folder, self._follow_s = folder, follow_s
        self._metrics, self._log = metrics, log
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "follow")
        self._logged: str | None = None  # error that was logged last
        self._failed: int | None = None  # version that could not be opened
        self._retry_at_s, self._pause_s = 0.0, follow_s
        self._tasks: list[asyncio.Task] = []

    def start(self, step: Callable[[int], Awaitable[None]]) -> None:
        """Calls `step` with the number of the version in force, time and again."""
        if self._follow_s > 0:
            self.keep(self._poll(step))

    def keep(self, work: Coroutine) -> None:
        """Runs work that never ends by itself; an end, which is a bug, is logged."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._log_end)
        self._tasks.append(task)

    def _log_end(self, task: asyncio.Task) -> None:
        if not task.cancelled():
            self._metrics.version_failures.inc()
            self._log("follows_no_more", error=repr(task.exception()))

    async def _poll(self, step: Callable[[int], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._follow_s)
            number = await self.attempt(None, lambda: versions.in_force(self._folder))
            if number is not None and not self._is_put_off(number):
                await step(number)

    def _is_put_off(self, number: int) -> bool:
        now_s = asyncio.get_running_loop().time()
        return number == self._failed and now_s < self._retry_at_s

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
            if number != self._failed:
                self._pause_s = self._follow_s
            self._failed = number
            self._retry_at_s = loop.time() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            return None
        if number is not None:
            self._logged = self._failed = None
        return made

    def close(self) -> None:
        """Stops looking."""
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
