"""How much of a text stands word for word in what was retrieved for it, or in a database.

Letters here: X chunks, G grams of 13 tokens, P places of tokens.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, UInt64

from data_pipeline.database import Snapshot

GRAM_LEN = 13  # tokens; as many words are usual, which is longer
_AT_ONCE = 2**16  # tokens of passages: what is counted of them stays in a core's cache
_CHUNKS_AT_ONCE = 2**14
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: no token's part of a hash is lost


def longest_common_run(
    chunks_XM: Int[np.ndarray, "X M"],
    passages_XNR: Int[np.ndarray, "X N R"],
    chunk_lengths_X: Int[np.ndarray, " X"],
    passage_lengths_XN: Int[np.ndarray, "X N"],
) -> Int[np.ndarray, " X"]:
    """Tokens of the longest run that a chunk shares with one of its passages.

    Padding matches nothing. Over M, it is the paper's r(C).
    Source: Borgeaud et al. 2022, section 2.6.
    """
    num_chunks, num_passages, passage_len = passages_XNR.shape
    longest_X = np.zeros(num_chunks, np.int32)
    at_once = max(_AT_ONCE // max(num_passages * passage_len, 1), 1)
    for start in range(0, num_chunks if num_passages else 0, at_once):
        block = slice(start, start + at_once)
        longest_X[block] = _longest(
            _marked(chunks_XM[block], chunk_lengths_X[block], -1),
            _marked(passages_XNR[block], passage_lengths_XN[block], -2),
        )
    return longest_X


def _marked(tokens, lengths, padding: int) -> np.ndarray:
    """The tokens with another number in place of padding."""
    is_real = np.arange(tokens.shape[-1]) < lengths[..., None]
    return np.where(is_real, tokens, padding).astype(np.int32)


def _longest(chunks_XM: np.ndarray, passages_XNR: np.ndarray) -> np.ndarray:
    """The longest runs, by those that end at each place of the passages."""
    small = np.uint8 if chunks_XM.shape[1] < 256 else np.uint16
    run_XNR = np.zeros(passages_XNR.shape, small)
    longer_XNR, longest_XNR = np.zeros_like(run_XNR), np.zeros_like(run_XNR)
    for tokens_X in chunks_XM.T:
        same_XNR = passages_XNR == tokens_X[:, None, None]
        longer_XNR[..., 1:] = run_XNR[..., :-1]
        longer_XNR += 1
        np.multiply(longer_XNR, same_XNR, out=run_XNR)
        longer_XNR[..., 0] = 0
        np.maximum(longest_XNR, run_XNR, out=longest_XNR)
    return longest_XNR.max(axis=(1, 2))


class Grams:
    """The grams of a held-out text, to be looked for in a database."""

    def __init__(
        self, inputs_BL: Int[np.ndarray, "B L"], segments_BL: Int[np.ndarray, "B L"]
    ):
        """Takes sequences; a gram is of one document."""
        self._shape = inputs_BL.shape
        hashes, self._starts_G = _grams(
            inputs_BL.reshape(-1),
            (segments_BL + np.arange(len(segments_BL))[:, None] * 2**20).reshape(-1),
            (segments_BL > 0).reshape(-1),
        )
        self._hashes, self._of_G = np.unique(hashes, return_inverse=True)

    def standing_in(self, database: Snapshot) -> Bool[np.ndarray, "B L"]:
        """Tells which tokens are part of a gram that stands in the database, too.

        All of its text is read, once. Grams are compared by 64 bits of a hash.
        """
        is_there = np.zeros(len(self._hashes), bool)
        for hashes in _grams_of(database) if len(self._hashes) else ():
            places = np.searchsorted(self._hashes, hashes)
            places = np.minimum(places, len(self._hashes) - 1)
            is_there[places[self._hashes[places] == hashes]] = True
        starts = self._starts_G[is_there[self._of_G]]
        # +1 where a gram begins and -1 behind its end: above 0 within one.
        edges_P = np.zeros(int(np.prod(self._shape)) + GRAM_LEN + 1, np.int64)
        np.add.at(edges_P, starts, 1)
        np.add.at(edges_P, starts + GRAM_LEN, -1)
        inside_P = np.cumsum(edges_P)[: int(np.prod(self._shape))] > 0
        return inside_P.reshape(self._shape)


def _grams_of(database: Snapshot) -> Iterator[UInt64[np.ndarray, " G"]]:
    """The grams of all documents that are not deleted, block by block."""
    table = database.chunks()
    before = -(-GRAM_LEN // database.chunk_len)  # chunks in which a gram may have begun
    for start in range(0, len(table), _CHUNKS_AT_ONCE):
        rows_X = np.arange(
            max(start - before, 0), min(start + _CHUNKS_AT_ONCE, len(table))
        )
        documents_X = table.take("documents", rows_X)
        lengths_X = table.take("lengths", rows_X)
        tokens_XM = table.take("tokens", rows_X)
        is_real_XM = np.arange(tokens_XM.shape[1]) < lengths_X[:, None]
        is_real_XM &= ~database.state.is_deleted(documents_X)[:, None]
        hashes, _ = _grams(
            tokens_XM.reshape(-1),
            np.repeat(documents_X, tokens_XM.shape[1]),
            is_real_XM.reshape(-1),
        )
        yield hashes


def _grams(
    tokens_P: np.ndarray, documents_P: np.ndarray, is_real_P: np.ndarray
) -> tuple[UInt64[np.ndarray, " G"], Int[np.ndarray, " G"]]:
    """Hashes of the runs of 13 real tokens of one document, and where each begins."""
    count = max(len(tokens_P) - GRAM_LEN + 1, 0)
    hashes_G = np.zeros(count, np.uint64)
    tokens_P = tokens_P.astype(np.uint64) + np.uint64(1)
    for place in range(GRAM_LEN):
        hashes_G *= _FACTOR
        hashes_G += tokens_P[place : place + count]
    # Padding stands at the ends of documents alone: both ends tell of all between.
    ends = slice(GRAM_LEN - 1, GRAM_LEN - 1 + count)
    is_gram_G = is_real_P[:count] & is_real_P[ends]
    is_gram_G &= documents_P[:count] == documents_P[ends]
    starts_G = np.flatnonzero(is_gram_G)
    return hashes_G[starts_G], starts_G
