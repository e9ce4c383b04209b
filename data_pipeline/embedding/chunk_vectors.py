"""The vectors of chunks: made by the embedder, read back from their shards."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from data_pipeline.embedding.embedder import Embedder
from data_pipeline.storage.mapped_arrays import Column, open_array
from data_pipeline.text.tokenizer import Tokenizer

TEXTS_AT_ONCE = 1024  # embedded in one go: a vector's bits depend on it


def embed_chunks(
    tokens_TM: np.ndarray, tokenizer: Tokenizer, embedder: Embedder
) -> np.ndarray:
    """Float16 vectors of chunks, (T, W)."""
    empty = np.zeros((0, embedder.width), np.float16)
    return np.concatenate([empty, *embed_blocks(tokens_TM, tokenizer, embedder)])


def embed_blocks(
    tokens_TM: np.ndarray, tokenizer: Tokenizer, embedder: Embedder
) -> Iterator[np.ndarray]:
    """Gives the vectors block by block; every vector of a database is made here."""
    for start in range(0, len(tokens_TM), TEXTS_AT_ONCE):
        block = tokens_TM[start : start + TEXTS_AT_ONCE]
        texts = [tokenizer.decode(tokens_M) for tokens_M in block]
        yield embedder.embed(texts).astype(np.float16)


def vectors(shard: Path) -> np.ndarray:
    """Embeddings of a shard's chunks, (T, W) float16, by memory map."""
    return open_array(shard / "vectors.npy")


def all_vectors(shards: Sequence[Path]) -> Column:
    """Embeddings of the chunks of shards by id, (T, W) float16, by memory map."""
    return Column([shard / "vectors.npy" for shard in shards])


def read_vectors(
    shards: Sequence[Path], width: int, at_most: int | None = None
) -> Float32[np.ndarray, "T W"]:
    """Vectors of whole shards in memory, or so many spread evenly over them.

    Spread, because the first would be those of a few documents.
    """
    parts = [vectors(shard) for shard in shards]
    total = sum(len(part) for part in parts)
    kept = total if at_most is None else min(total, at_most)
    chosen = np.arange(kept) * total // max(kept, 1)
    found = [np.zeros((0, width), np.float32)]
    for part in parts:
        found.append(part[chosen[(chosen >= 0) & (chosen < len(part))]])
        chosen = chosen - len(part)
    return np.concatenate(found, dtype=np.float32)
