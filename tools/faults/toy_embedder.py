"""A deterministic embedder without weights: texts that share letters come out close.

For tests, and for benchmarks that build databases again and again.

    python -m tools.faults.toy_embedder MODULE FLAGS ...

The command runs another one with the toy in place.
"""

import atexit
import contextlib
import runpy
import sys
import zlib
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
from jaxtyping import Float

from data_pipeline.build import shard_work
from data_pipeline.embedding import embedder


class ToyEmbedder:
    """Bag of character trigrams, hashed and projected to W = 32; satisfies `Embedder`."""

    width = 32
    fingerprint = "70e0000000000032"

    def __init__(self, *, buckets: int = 1024, seed: int = 0):
        """Draws the projection of `buckets` hashed trigrams from `seed`."""
        rng = np.random.default_rng(seed)
        self._projection = rng.standard_normal((buckets, self.width), np.float32)

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "Q W"]:
        """Gives a float32 unit vector for each text; no texts give (0, 32)."""
        vectors_QW = np.zeros((len(texts), self.width), np.float32)
        for row, text in enumerate(texts):
            # The frame makes a trigram of the empty text too.
            framed = f"\x02{' '.join(text.lower().split())}\x03\x03".encode()
            for i in range(len(framed) - 2):
                bucket = zlib.crc32(framed[i : i + 3]) % len(self._projection)
                vectors_QW[row] += self._projection[bucket]
        return vectors_QW / np.linalg.norm(vectors_QW, axis=1, keepdims=True)


@contextlib.contextmanager
def in_place_of_all() -> Iterator[None]:
    """Puts the toy in the place of every embedder, in this process."""
    toy = mock.Mock(side_effect=lambda name: ToyEmbedder())
    with (
        mock.patch.object(shard_work, "load_embedder", toy),
        mock.patch.object(shard_work, "check_embedder"),
        mock.patch.object(embedder, "load_embedder", toy),
    ):
        yield
    shard_work.embedder.cache_clear()


def begin(embedder_name: str) -> None:
    """Begins a process: the toy stays in place to its end, if it is what is asked for."""
    to_the_end = in_place(embedder_name)
    to_the_end.__enter__()
    atexit.register(to_the_end.__exit__, None, None, None)


def in_place(embedder_name: str) -> contextlib.AbstractContextManager[None]:
    """Puts the toy in place if that is the embedder asked for; else nothing."""
    return in_place_of_all() if embedder_name == "toy" else contextlib.nullcontext()


if __name__ == "__main__":
    del sys.argv[0]
    with in_place_of_all():
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
