"""What a search gives back: passages with their sources, or arrays for a model.

Letters here: X passages.
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float, Int

from data_pipeline.database.snapshot import Snapshot


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A passage of the database, where it comes from and how near it is.

    Attributes:
        text: of the chunk that matched.
        continuation: what follows it in its document; '' at the document's end.
        offset: UTF-8 bytes of the document before the match.
        distance: squared L2 distance of the embeddings, 0 to 4 for unit vectors.
    """

    text: str
    continuation: str
    document_id: str
    title: str
    uri: str
    licence: str
    offset: int
    distance: float
    chunk_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class Retrieved:
    """Neighbours of Q chunks as arrays: what a model reads, and what tells the source."""

    tokens_QNR: Int[np.ndarray, "Q N R"]
    lengths_QN: Int[np.ndarray, "Q N"]  # 0 = absent
    chunk_ids_QN: Int[np.ndarray, "Q N"]  # -1 = absent
    distances_QN: Float[np.ndarray, "Q N"]


def passages_at(
    snapshot: Snapshot, ids_X: Int[np.ndarray, " X"], distances_X
) -> list[Found]:
    """The passages at chunks of the training split, with their sources.

    Reads from disk, once for all: a tenth of the time that one after the other takes.

    Args:
        distances_X: what each says of its distance.
    Raises:
        IndexError: if there is no such chunk.
    """
    if not len(ids_X):
        return []
    table, chunk_len = snapshot.chunks(), snapshot.chunk_len
    decode = snapshot.tokenizer.decode
    tokens_XR, lengths_X = table.passages(ids_X, 2 * chunk_len)
    rows_X = table.take("documents", ids_X)
    sources = snapshot.documents().take(rows_X).drop_columns("size_bytes").to_pylist()
    return [
        Found(
            text=decode(tokens_R[: min(length, chunk_len)]),
            continuation=decode(tokens_R[chunk_len:length]),
            document_id=source.pop("id"),
            offset=offset,
            distance=distance,
            chunk_id=chunk_id,
            **source,
        )
        for tokens_R, length, source, offset, distance, chunk_id in zip(
            tokens_XR,
            lengths_X.tolist(),
            sources,
            table.take("offsets", ids_X).tolist(),
            np.asarray(distances_X).tolist(),
            ids_X.tolist(),
            strict=True,
        )
    ]


def found_at(
    snapshot: Snapshot,
    ids_QN: Int[np.ndarray, "Q N"],
    distances_QN: Float[np.ndarray, "Q N"],
) -> list[list[Found]]:
    """The passages of a search's ids, row by row; none for id -1."""
    there_QN = ids_QN >= 0
    found = iter(passages_at(snapshot, ids_QN[there_QN], distances_QN[there_QN]))
    counts_Q = np.count_nonzero(there_QN, axis=1)
    return [list(itertools.islice(found, count)) for count in counts_Q]


def retrieved_at(
    snapshot: Snapshot,
    ids_QN: Int[np.ndarray, "Q N"],
    distances_QN: Float[np.ndarray, "Q N"],
    num_neighbours: int,
    passage_len: int,
) -> Retrieved:
    """A search's ids with their tokens, filled up to `num_neighbours` with absent ones.

    Args:
        passage_len: R, a multiple of the length of a chunk.
    """
    absent = ((0, 0), (0, num_neighbours - ids_QN.shape[1]))
    ids_QN = np.pad(ids_QN, absent, constant_values=-1)
    distances_QN = np.pad(distances_QN, absent, constant_values=np.inf)
    tokens_QNR, lengths_QN = snapshot.chunks().passages(ids_QN, passage_len)
    return Retrieved(tokens_QNR, lengths_QN, ids_QN, distances_QN)
