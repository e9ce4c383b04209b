"""Packs the chunks of a split, with their neighbours, into sequences for training.

Sequences follow from the documents' order and sizes alone, so whoever makes some of them
needs the chunks and neighbours of those, and a row of every chunk to know which they are.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from data_pipeline.config import DataConfig
from data_pipeline.database import Snapshot

_AT_ONCE = 256  # sequences that are gathered together: the fewer reads of a shard


@runtime_checkable
class Chunks(Protocol):
    """Chunks of documents, in rows: a `ChunkTable` is one."""

    def __len__(self) -> int: ...

    def take(self, column: str, ids_T: Int[np.ndarray, "..."]) -> np.ndarray:
        """Rows of `tokens`, `lengths` or `documents`, by chunk id."""


def windows(
    documents: Int[np.ndarray, " _"],
    first_chunk_D: Int[np.ndarray, " D"],
    num_chunks_D: Int[np.ndarray, " D"],
    sequence_chunks: int,
    stride: int,
    *,
    keep_incomplete: bool,
) -> Int[np.ndarray, "S C"]:
    """Chunk ids of sequences: windows over the chunks of documents, one after the other.

    Args:
        documents: rows of documents, in the order in which their chunks follow.
        first_chunk_D, num_chunks_D: where each document's chunks are, by row.
        sequence_chunks: C.
        stride: chunks from one window's start to the next; less than C repeats the last
            C - stride chunks of a window as context of the next.
        keep_incomplete: also the last window, filled up with -1.
    """
    sizes = num_chunks_D[documents]
    places = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    stream = np.repeat(first_chunk_D[documents], sizes) + places
    last_start = len(stream) - sequence_chunks
    count = max(last_start // stride + 1, 0)
    covered = (count - 1) * stride + sequence_chunks if count else 0
    if keep_incomplete and covered < len(stream):
        count += 1
        missing = (count - 1) * stride + sequence_chunks - len(stream)
        stream = np.append(stream, np.full(missing, -1))
    starts = np.arange(count) * stride
    return stream[starts[:, None] + np.arange(sequence_chunks)]


def pack(database: Snapshot, split: str, cfg: DataConfig) -> Int[np.ndarray, "S C"]:
    """Chunk ids of all sequences of a split, in order; -1 where a last one is padded.

    Training: documents in an order drawn from `cfg.seed`, each chunk once. Validation
    and test: documents in their own order, windows that overlap by half, of which only
    the new half is scored; so all text is scored once, most of it with long context and
    with neighbours. (Paper, section 4: a window of 2048 and a stride of 1024.)
    """
    rows, first_chunk, num_chunks = np.unique(
        database.chunks(split).column("documents"),
        return_index=True,
        return_counts=True,
    )
    is_train = split == "train"
    order = np.flatnonzero(~database.state.is_deleted(rows, split))
    if is_train:
        np.random.default_rng(cfg.seed).shuffle(order)
    return windows(
        order,
        first_chunk,
        num_chunks,
        cfg.sequence_chunks,
        _stride(split, cfg),
        keep_incomplete=not is_train,
    )


def _stride(split: str, cfg: DataConfig) -> int:
    """Chunks from the start of a sequence to that of the next."""
    return cfg.sequence_chunks if split == "train" else max(cfg.sequence_chunks // 2, 1)


def blocks(
    database: Snapshot,
    split: str,
    cfg: DataConfig,
    ids_SC: Int[np.ndarray, "S C"],
    first: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Some of a split's sequences, by blocks: arrays by name, their first axis the sequence.

    The features of `dataset.py`, whose names have the other axes; a block has 256 or fewer.

    Args:
        ids_SC: their chunks, as `pack` gives them.
        first: place of the first of them in the split.
    """
    overlap = (cfg.sequence_chunks - _stride(split, cfg)) * cfg.chunk_len
    for start in range(0, len(ids_SC), _AT_ONCE):
        ids_BC = ids_SC[start : start + _AT_ONCE]
        # Scored in the window before; the first window has none.
        scored_before_B = np.where(first + start + np.arange(len(ids_BC)), overlap, 0)
        text = texts(
            database.chunks(split),
            database.tokenizer.token_bytes_V,
            cfg,
            ids_BC,
            scored_before_B,
        )
        own_BC = text["documents_C"]
        yield {**text, **_neighbours(database, split, cfg, ids_BC, own_BC)}


def texts(
    table: Chunks,
    token_bytes_V: Int[np.ndarray, " V"],
    cfg: DataConfig,
    ids_BC: Int[np.ndarray, "B C"],
    scored_before_B: Int[np.ndarray, " B"],
) -> dict[str, np.ndarray]:
    """The text of B sequences, without neighbours: arrays by name.

    Args:
        table: what has their chunks.
        token_bytes_V: bytes of each token's text.
        ids_BC: chunks; -1 is padding.
        scored_before_B: positions at the beginning that are context alone.
    """
    length = cfg.sequence_chunks * cfg.chunk_len
    # One chunk more than the sequence has, for the target of its last position.
    last_B1 = ids_BC[:, -1:]
    has_next_B1 = (last_B1 >= 0) & (last_B1 + 1 < len(table))
    wide_BC = np.append(ids_BC, np.where(has_next_B1, last_B1 + 1, -1), axis=1)
    there_BC, rows_BC = wide_BC >= 0, np.maximum(wide_BC, 0)
    documents_BC = np.where(there_BC, table.take("documents", rows_BC), -1)
    lengths_BC = np.where(there_BC, table.take("lengths", rows_BC), 0)
    real_BCM = np.arange(cfg.chunk_len) < lengths_BC[..., None]
    tokens_BL = np.where(real_BCM, table.take("tokens", rows_BC), 0)
    tokens_BL = tokens_BL.reshape(len(ids_BC), -1).astype(np.int32)
    # Documents of a sequence get the segments 1, 2, ... in the order they appear in.
    starts_BC = np.diff(documents_BC, axis=1, prepend=-2) != 0
    segments_BL = np.where(real_BCM, np.cumsum(starts_BC, axis=1)[..., None], 0)
    segments_BL = segments_BL.reshape(len(ids_BC), -1).astype(np.int32)
    inputs_BL, targets_BL = tokens_BL[:, :length], tokens_BL[:, 1 : length + 1]
    own_BL, next_BL = segments_BL[:, :length], segments_BL[:, 1 : length + 1]
    is_new_BL = np.arange(length) >= scored_before_B[:, None]
    return {
        "inputs_L": inputs_BL,
        "targets_L": targets_BL,
        "loss_weights_L": ((own_BL == next_BL) & (own_BL > 0) & is_new_BL).view(
            np.uint8
        ),
        "target_bytes_L": token_bytes_V[targets_BL],
        "segments_L": own_BL,
        "documents_C": documents_BC[:, :-1],
    }


def _neighbours(
    database: Snapshot,
    split: str,
    cfg: DataConfig,
    ids_BC: Int[np.ndarray, "B C"],
    documents_BC: Int[np.ndarray, "B C"],
) -> dict[str, np.ndarray]:
    """Neighbours of chunks, from none of the documents of their sequence."""
    # Held-out documents are not in the database.
    own_BC = documents_BC if split == "train" else documents_BC[:, :0]
    ids_TN, distances_TN = database.neighbours(split).outside(
        ids_BC.reshape(-1),
        np.repeat(own_BC, ids_BC.shape[1], axis=0),
        database.document_of_chunk,
        cfg.num_neighbours,
    )
    shape = (*ids_BC.shape, cfg.num_neighbours)
    return passages(database, cfg, ids_TN.reshape(shape), distances_TN.reshape(shape))


def passages(
    database: Snapshot,
    cfg: DataConfig,
    ids_BCN: Int[np.ndarray, "B C N"],
    distances_BCN: Float[np.ndarray, "B C N"],
) -> dict[str, np.ndarray]:
    """The neighbours of B sequences by name; those of id -1 are absent."""
    tokens_BCNR, lengths_BCN = database.chunks().passages(ids_BCN, cfg.neighbour_len)
    return {
        "neighbours_CNR": tokens_BCNR,
        "neighbour_lengths_CN": lengths_BCN,
        "neighbour_ids_CN": ids_BCN,
        "neighbour_distances_CN": distances_BCN,
    }
