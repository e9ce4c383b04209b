"""Queries of several requests are embedded together, in turns, while somebody waits."""

import asyncio
import threading

import numpy as np
import pytest

from data_pipeline.service.routing.micro_batches import MicroBatches
from tests.toy_embedder import ToyEmbedder

_TOY = ToyEmbedder()
_LONG = [f"text {row} " + "word " * 40 for row in range(300)]  # some 60 KB


class Stepwise:
    """An embedder that embeds a batch whenever it is let, and keeps what it was given."""

    def __init__(self):
        self.batches: list[list[str]] = []
        self._steps = threading.Semaphore(0)
        self._begun: asyncio.Queue[None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def embed(self, texts):
        self.batches.append(texts)
        self._loop.call_soon_threadsafe(self._begun.put_nowait, None)
        assert self._steps.acquire(timeout=30)
        if "bad" in texts:
            raise ValueError("a bad text")
        return _TOY.embed(texts)

    def let(self, batches: int = 1000) -> None:
        self._steps.release(batches)

    async def begun(self) -> None:
        """Waits for the next batch to begin."""
        await asyncio.wait_for(self._begun.get(), 30)


def made(embed, window_s=0.0) -> MicroBatches:
    return MicroBatches(embed, size_of=len, window_s=window_s)


def in_a_loop(test):
    def run():
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@in_a_loop
async def test_texts_of_requests_are_embedded_together_and_errors_are_shared():
    stepwise = Stepwise()
    stepwise.let()
    batches = made(stepwise.embed, window_s=0.05)
    asked = [["a"], ["b", "c"], ["d"] * 5, ["e"]]
    together = await asyncio.gather(*map(batches.embed, asked))
    for texts, vectors in zip(asked, together, strict=True):
        np.testing.assert_array_equal(vectors, _TOY.embed(texts))
    failed = await asyncio.gather(
        batches.embed(["bad"]), batches.embed(["a"]), return_exceptions=True
    )
    assert [str(error) for error in failed] == ["a bad text"] * 2
    np.testing.assert_array_equal(await batches.embed(["a"]), _TOY.embed(["a"]))
    assert list(map(len, stepwise.batches)) == [9, 2, 1]
    batches.close()


@in_a_loop
async def test_a_short_request_waits_for_one_batch_of_a_long_one():
    stepwise = Stepwise()
    batches = made(stepwise.embed)
    long = [asyncio.create_task(batches.embed(_LONG)) for _ in range(3)]
    await stepwise.begun()
    short = asyncio.create_task(batches.embed(["short"]))
    stepwise.let(1)
    await stepwise.begun()
    stepwise.let(1)
    np.testing.assert_array_equal(await short, _TOY.embed(["short"]))
    # The batch that ran when it came, and its own.
    assert ["short" in batch for batch in stepwise.batches[:2]] == [False, True]
    stepwise.let()
    for found_QW in await asyncio.gather(*long):
        np.testing.assert_array_equal(found_QW, _TOY.embed(_LONG))
    sizes = [sum(map(len, batch)) for batch in stepwise.batches]
    assert max(sizes) < 12_000 and len(sizes) > 10
    batches.close()


@in_a_loop
async def test_nothing_more_is_embedded_of_a_request_that_was_given_up():
    stepwise = Stepwise()
    batches = made(stepwise.embed)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await batches.embed(_LONG)
    stepwise.let()
    await batches.embed(["next"])
    assert list(map(len, stepwise.batches[1:])) == [1]
    batches.close()


@in_a_loop
async def test_many_tiny_queries_are_no_batch_of_thousands():
    stepwise = Stepwise()
    stepwise.let()
    batches = made(stepwise.embed)
    await batches.embed(["a"] * 2000)
    assert max(map(len, stepwise.batches)) < 200
    batches.close()
