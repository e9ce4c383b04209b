"""The text of a database in pieces, so that each token has what stands before it in its document.

Letters here: P pieces.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from data_pipeline.database import Snapshot

_PIECES = 64  # of a block


class DatabaseTexts:
    """Pieces of two chunks, of which the second is new: the first is what it is read after."""

    def __init__(self, snapshot: Snapshot, *, most_chunks: int = 0, seed: int = 0):
        """Chooses the documents.

        Args:
            most_chunks: so many at most, of whole documents drawn by chance, none if each
                has more; 0 = all.
            seed: of the draw.
        """
        self._chunks = snapshot.chunks()
        ids_T = np.sort(snapshot.searchable)
        documents_T = self._chunks.take("documents", ids_T)
        if most_chunks and len(ids_T):
            rows_D, counts_D = np.unique(documents_T, return_counts=True)
            order_D = np.random.default_rng(seed).permutation(len(rows_D))
            # A document that is larger than all the room is passed over.
            order_D = order_D[counts_D[order_D] <= most_chunks]
            fits_D = np.cumsum(counts_D[order_D]) <= most_chunks
            ids_T = ids_T[np.isin(documents_T, rows_D[order_D[fits_D]])]
            documents_T = self._chunks.take("documents", ids_T)
        self._ids_T, self._chunk_len = ids_T, snapshot.chunk_len
        is_first_T = np.ones(len(ids_T), bool)
        is_first_T[1:] = documents_T[1:] != documents_T[:-1]
        self._is_first_T = is_first_T

    def __len__(self) -> int:
        return len(self._ids_T)

    def blocks(
        self,
    ) -> Iterator[tuple[Int[np.ndarray, "P R"], Int[np.ndarray, "P R"]]]:
        """Blocks of equally many pieces: their tokens, and for each the token behind it.

        The token behind is -1 where it is none, or another piece has it.
        """
        length = 2 * self._chunk_len
        for start in range(0, len(self), _PIECES):
            there = slice(start, start + _PIECES)
            ids_P = np.full(_PIECES, -1)
            first_P = np.zeros(_PIECES, bool)
            ids_P[: len(self._ids_T[there])] = self._ids_T[there]
            first_P[: len(self._ids_T[there])] = self._is_first_T[there]
            tokens_PR, lengths_P = self._chunks.passages(ids_P, length)
            places_R = np.arange(1, length)
            from_P = np.where(first_P, 1, self._chunk_len)
            is_new_PR = (places_R >= from_P[:, None]) & (places_R < lengths_P[:, None])
            behind_PR = np.full_like(tokens_PR, -1)
            behind_PR[:, :-1] = np.where(is_new_PR, tokens_PR[:, 1:], -1)
            yield tokens_PR, behind_PR
