"""What a search gives back: passages with their sources, or arrays for a model."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int


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
