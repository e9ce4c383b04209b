"""Queries of several requests, embedded together and in turns.

Source: ours. An embedder takes little longer for a few texts than for one, and can't be
stopped: so it is given little at a time, some of each request that waits (as round robin
does for packets, Nagle 1987). A short request waits for no long one, and nothing more is
embedded of a request whose caller has gone.
"""

import asyncio
import collections
import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float

# Of text, at a time: some tenths of a second of a small model on a few cores.
_BATCH_BYTES = 8 << 10
# Of one request, while others wait: one query at least.
_TURN_BYTES = 2 << 10
# A query costs as much as so many bytes of text beside its own.
_QUERY_BYTES = 64

_Query = TypeVar("_Query")


class _Request(Generic[_Query]):
    """What is left of a request, and the vectors that it has."""

    def __init__(self, queries: Sequence[_Query], answer: asyncio.Future):
        self.queries, self.answer = queries, answer
        self.num_taken, self.parts = 0, list[np.ndarray]()

    @property
    def is_all_taken(self) -> bool:
        return self.num_taken == len(self.queries)

    def take(self, size_of: Callable[[_Query], int]) -> tuple[list[_Query], int]:
        """Gives the queries of its next turn, and what they cost in bytes."""
        turn, size = list[_Query](), 0
        for query in self.queries[self.num_taken :]:
            if turn and size + _QUERY_BYTES + size_of(query) > _TURN_BYTES:
                break
            turn.append(query)
            size += _QUERY_BYTES + size_of(query)
        self.num_taken += len(turn)
        return turn, size

    def give(self, vectors_QW: np.ndarray) -> None:
        """Takes the vectors of a turn; the last of them are the answer."""
        self.parts.append(vectors_QW)
        if sum(map(len, self.parts)) == len(self.queries) and not self.answer.done():
            self.answer.set_result(np.concatenate(self.parts))


class MicroBatches(Generic[_Query]):
    """Waits a moment for other requests' queries before it embeds.

    One batch is embedded at a time, on a thread of its own; what comes meanwhile makes the
    next one.
    """

    def __init__(
        self,
        embed: Callable[[list[_Query]], Float[np.ndarray, "Q W"]],
        *,
        size_of: Callable[[_Query], int],
        window_s: float,
    ):
        """`window_s` is the moment; `size_of` gives about the bytes of a query's text."""
        self._embed, self._size_of, self._window_s = embed, size_of, window_s
        self._waiting = collections.deque[_Request[_Query]]()
        self._arrived = asyncio.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "embed")
        self._loop_task: asyncio.Task | None = None

    async def embed(self, queries: Sequence[_Query]) -> Float[np.ndarray, "Q W"]:
        """Gives a vector for each query; there must be one."""
        if self._loop_task is None:
            self._loop_task = asyncio.create_task(self._run())
        answer: asyncio.Future = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(queries, answer))
        self._arrived.set()
        return await answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await asyncio.sleep(self._window_s)
            # What is left of large requests has waited: no other moment for it.
            while batch := self._take():
                queries = [query for _, turn in batch for query in turn]
                embedded = loop.run_in_executor(self._thread, self._embed, queries)
                # Not awaited as such: an error is for those who asked, this loop goes on.
                await asyncio.wait([embedded])
                _give(embedded, batch)
            self._arrived.clear()

    def _take(self) -> list[tuple[_Request[_Query], list[_Query]]]:
        """Takes a turn of each request, again and again while the batch has room."""
        batch, size = list[tuple[_Request[_Query], list[_Query]]](), 0
        while self._waiting and size < _BATCH_BYTES:
            request = self._waiting.popleft()
            if request.answer.done():  # given up
                continue
            turn, turn_bytes = request.take(self._size_of)
            batch.append((request, turn))
            size += turn_bytes
            if not request.is_all_taken:
                self._waiting.append(request)
        return batch

    def close(self) -> None:
        """Stops; nothing may be waiting any more. What is being embedded is finished."""
        if self._loop_task is not None:
            self._loop_task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)


def _give(embedded: asyncio.Future, batch) -> None:
    """Hands each request its vectors, or all of them the error."""
    error, row = embedded.exception(), 0
    for request, turn in batch:
        if error is None:
            request.give(embedded.result()[row : row + len(turn)])
        elif not request.answer.done():
            request.answer.set_exception(error)
        row += len(turn)
