"""Texts of several requests are embedded together."""

import numpy as np

from data_pipeline.service.routing import micro_batches
from tests.toy_embedder import ToyEmbedder


def test_texts_of_requests_are_embedded_together_and_errors_are_shared(running):
    sizes, toy = [], ToyEmbedder()

    class Counting:
        width, fingerprint = toy.width, toy.fingerprint

        def embed(self, texts):
            sizes.append(len(texts))
            if "bad" in texts:
                raise ValueError("a bad text")
            return toy.embed(texts)

    async def ask():
        import asyncio

        batches = micro_batches.MicroBatches(Counting(), window_s=0.05, most_texts=6)
        asked = [["a"], ["b", "c"], ["d"] * 5, ["e"]]
        together = await asyncio.gather(*map(batches.embed, asked))
        failed = await asyncio.gather(
            batches.embed(["bad"]), batches.embed(["a"]), return_exceptions=True
        )
        after = await batches.embed(["a"])
        await batches.close()
        return asked, together, failed, after

    asked, together, failed, after = running.run(ask())
    for texts, vectors in zip(asked, together, strict=True):
        np.testing.assert_array_equal(vectors, toy.embed(texts))
    assert [str(error) for error in failed] == ["a bad text"] * 2
    np.testing.assert_array_equal(after, toy.embed(["a"]))
    assert sizes == [3, 6, 2, 1]
