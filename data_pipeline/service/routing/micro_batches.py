"""Texts of several requests, embedded together.

Source: ours. An embedder takes little longer for a few texts than for one.
"""

import asyncio
import concurrent.futures
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from data_pipeline.embedding.embedder import Embedder


class MicroBatches:
    """Waits a moment for other requests' texts before it embeds.

    One batch is embedded at a time, on a thread of its own; what comes meanwhile makes the
    next one.
    """

    def __init__(self, embedder: Embedder, *, window_s: float, most_texts: int):
        """`window_s` is the moment; `most_texts` are enough not to wait for more."""
        self._embedder, self._window_s, self._most = embedder, window_s, most_texts
        self._waiting: list[tuple[Sequence[str], asyncio.Future]] = []
        self._arrived = asyncio.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "embed")
        self._loop_task: asyncio.Task | None = None

    async def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "Q W"]:
        """Gives a vector for each text."""
        if self._loop_task is None:
            self._loop_task = asyncio.create_task(self._run())
        vectors: asyncio.Future = asyncio.get_running_loop().create_future()
        self._waiting.append((texts, vectors))
        self._arrived.set()
        return await vectors

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await asyncio.sleep(self._window_s)
            batch = self._take()
            texts = [text for part, _ in batch for text in part]
            embedded = loop.run_in_executor(self._thread, self._embedder.embed, texts)
            # Not awaited as such: an error is for those who asked, this loop goes on.
            await asyncio.wait([embedded])
            _give(embedded, batch)

    def _take(self) -> list[tuple[Sequence[str], asyncio.Future]]:
        """Takes the first requests that fit a batch, at least one; drops those given up."""
        self._waiting = [entry for entry in self._waiting if not entry[1].done()]
        count = size = 0
        for texts, _ in self._waiting:
            size += len(texts)
            if count and size > self._most:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        if not self._waiting:
            self._arrived.clear()
        return batch

    async def close(self) -> None:
        """Stops; nothing may be waiting any more."""
        if self._loop_task is not None:
            self._loop_task.cancel()
        self._thread.shutdown()


def _give(embedded: asyncio.Future, batch) -> None:
    """Hands each request its vectors, or all of them the error."""
    error, row = embedded.exception(), 0
    for texts, vectors in batch:
        if not vectors.done():
            if error is not None:
                vectors.set_exception(error)
            else:
                vectors.set_result(embedded.result()[row : row + len(texts)])
        row += len(texts)
