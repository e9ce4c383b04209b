"""What a search gives back: passages with their sources, or arrays for a model."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from data_pipeline.database import Database


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
