"""What a search gives back: passages with their sources, or arrays for a model."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from data_pipeline.database.database import Database


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


def passage_at(database: "Database", chunk_id: int, distance: float) -> Found:
    """The passage at a chunk of the training split, with its source."""
    id_1, table = np.array([chunk_id]), database.chunks()
    tokens_1R, lengths_1 = table.passages(id_1, 2 * database.chunk_len)
    match, continuation = np.split(tokens_1R[0, : lengths_1[0]], [database.chunk_len])
    row = int(database.document_of_chunk[chunk_id])
    document = database.documents().slice(row, 1)
    source = document.drop_columns("size_bytes").to_pylist()[0]
    return Found(
        text=database.tokenizer.decode(match),
        continuation=database.tokenizer.decode(continuation),
        document_id=source.pop("id"),
        offset=int(table.take("offsets", id_1)[0]),
        distance=distance,
        chunk_id=chunk_id,
        **source,
    )


def found_at(database: "Database", ids_QN, distances_QN) -> list[list[Found]]:
    """The passages of a search's ids, row by row; none for id -1."""
    return [
        [
            passage_at(database, int(chunk_id), float(distance))
            for chunk_id, distance in zip(ids, distances, strict=True)
            if chunk_id >= 0
        ]
        for ids, distances in zip(ids_QN, distances_QN, strict=True)
    ]


def retrieved_at(
    database: "Database", ids_QN, distances_QN, num_neighbours: int, passage_len: int
) -> Retrieved:
    """A search's ids with their tokens, filled up to `num_neighbours` with absent ones."""
    absent = ((0, 0), (0, num_neighbours - ids_QN.shape[1]))
    ids_QN = np.pad(ids_QN, absent, constant_values=-1)
    distances_QN = np.pad(distances_QN, absent, constant_values=np.inf)
    tokens_QNR, lengths_QN = database.chunks().passages(ids_QN, passage_len)
    return Retrieved(tokens_QNR, lengths_QN, ids_QN, distances_QN)
