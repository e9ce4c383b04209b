"""Chunks: a document cut into pieces of M tokens, and the table of all pieces.

A document is tokenised, ends with EOD and is cut into chunks; its last chunk is padded. A
chunk never crosses documents. A table is a list of shards, each a folder of arrays that
are opened by memory map:

    tokens.npy     (T, M) uint16, or int32 for a large vocabulary
    lengths.npy    (T,) int32, tokens that are not padding, EOD included
    documents.npy  (T,) int64, row of the chunk's document in its split
    offsets.npy    (T,) int64, UTF-8 bytes of the document before the chunk

A chunk's id is its row, counted over the shards in order.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Integer

from data_pipeline.storage.mapped_arrays import Column
from data_pipeline.text.tokenizer import Tokenizer

ARRAYS = ("tokens", "lengths", "documents", "offsets")


def cut_document(
    text: str, tokenizer: Tokenizer, chunk_len: int
) -> tuple[Integer[np.ndarray, "T M"], Int[np.ndarray, " T"], Int[np.ndarray, " T"]]:
    """A document's chunks: tokens, lengths and byte offsets.

    Args:
        text: at least one character, so that there is a chunk.
        chunk_len: M.
    """
    ids = np.append(tokenizer.encode(text), tokenizer.eod_id)
    num_chunks = -(-len(ids) // chunk_len)
    tokens = np.full(num_chunks * chunk_len, tokenizer.pad_id, np.int32)
    tokens[: len(ids)] = ids
    lengths_T = np.full(num_chunks, chunk_len, np.int32)
    lengths_T[-1] = len(ids) - (num_chunks - 1) * chunk_len
    before = np.concatenate([[0], np.cumsum(tokenizer.token_bytes_V[ids])])
    offsets_T = before[: len(ids) : chunk_len].astype(np.int64)
    return tokens.reshape(num_chunks, chunk_len), lengths_T, offsets_T


def write_shard(
    texts: Sequence[str],
    first_document: int,
    tokenizer: Tokenizer,
    chunk_len: int,
    folder: Path,
) -> None:
    """Cuts consecutive documents and writes their chunks as one shard.

    Args:
        first_document: row of the first of them in its split.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    columns: dict[str, list] = {name: [] for name in ARRAYS}
    for row, text in enumerate(texts, start=first_document):
        tokens_TM, lengths_T, offsets_T = cut_document(text, tokenizer, chunk_len)
        columns["tokens"].append(tokens_TM.astype(dtype))
        columns["lengths"].append(lengths_T)
        columns["documents"].append(np.full(len(lengths_T), row, np.int64))
        columns["offsets"].append(offsets_T)
    for name, parts in columns.items():
        np.save(folder / f"{name}.npy", np.concatenate(parts), allow_pickle=False)


class ChunkTable:
    """All chunks of a split, on disk."""

    def __init__(self, shards: Sequence[Path]):
        """Opens the shards; raises ValueError if one is damaged."""
        self._columns = {
            name: Column([shard / f"{name}.npy" for shard in shards]) for name in ARRAYS
        }
        self._first_rows = self._columns["lengths"].first_rows
        for name, column in self._columns.items():
            if not np.array_equal(column.first_rows, self._first_rows):
                raise ValueError(f"{name}.npy and lengths.npy differ in {shards}")

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def check(self, chunk_len: int, num_documents: int) -> None:
        """Raises ValueError naming a file that `write_shard` could not have written."""
        self._columns["tokens"].check((chunk_len,))
        self._columns["lengths"].check((), chunk_len)
        self._columns["documents"].check((), num_documents - 1)
        self._columns["offsets"].check(())

    def rows_of_shard(self, shard: int) -> range:
        """Ids of the chunks of a shard."""
        return range(self._first_rows[shard], self._first_rows[shard + 1])

    def take(self, column: str, ids_T: Int[np.ndarray, "..."]) -> np.ndarray:
        """Rows of `tokens`, `lengths`, `documents` or `offsets` by chunk id.

        Raises:
            IndexError: for an id outside 0 .. len - 1; absent neighbours (-1) too.
        """
        return self._columns[column].take(ids_T)

    def column(self, name: str) -> np.ndarray:
        """A whole column but `tokens`, in memory: 8 bytes a chunk."""
        return self._columns[name].whole()

    def has_text(self, ids: range) -> Bool[np.ndarray, " T"]:
        """Which chunks hold more than the EOD that closes their document."""
        rows = np.arange(ids.start, ids.stop)
        return self._text_lengths(rows) > 0

    def passages(
        self, ids: Int[np.ndarray, "..."], passage_len: int
    ) -> tuple[Int[np.ndarray, "... R"], Int[np.ndarray, "..."]]:
        """Each chunk and the chunks after it, as far as its document goes.

        Args:
            ids: chunk ids; -1 where there is none.
            passage_len: R, a multiple of M.
        Returns:
            int32 tokens, padded at the end, and how many are text: EOD, which no reader
            needs, is left out. 0 for id -1.
        """
        ids = np.asarray(ids, np.int64)
        there = ids >= 0
        first = np.where(there, ids, 0)
        documents = self.take("documents", first)
        parts, lengths = [], np.zeros(ids.shape, np.int32)
        (chunk_len,) = self._columns["tokens"].row_shape
        going_on = there
        for step in range(passage_len // chunk_len):
            follower = np.minimum(first + step, len(self) - 1)
            going_on = going_on & (first + step < len(self))
            going_on &= self.take("documents", follower) == documents
            text_lengths = self._text_lengths(follower)
            lengths += np.where(going_on, text_lengths, 0).astype(np.int32)
            tokens = self.take("tokens", follower).astype(np.int32)
            real = np.arange(chunk_len) < text_lengths[..., None]
            parts.append(np.where(going_on[..., None] & real, tokens, 0))
        return np.concatenate(parts, axis=-1), lengths

    def _text_lengths(self, ids):
        """Lengths without the EOD at the end of a document's last chunk."""
        following = np.minimum(ids + 1, len(self) - 1)
        ends = self.take("documents", following) != self.take("documents", ids)
        ends |= ids + 1 >= len(self)
        return self.take("lengths", ids) - ends
