"""Conversions between numpy and the messages of `retrieval.proto`, and limits of requests.

Everything that comes from outside passes here before it is used: a ValueError names what
is wrong and becomes INVALID_ARGUMENT.
Letters here: X passages.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Integer

from data_pipeline.database import Database, Found, Retrieved, results
from data_pipeline.index import checks
from data_pipeline.service.wire import retrieval_pb2 as pb

_FLOAT, _TOKEN, _ID = "<f4", "<i4", "<i8"


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The most that one request may ask for."""

    k: int = 1000
    queries: int = 2048
    results: int = 65_536  # queries times k
    text_bytes: int = 65_536  # of one query
    excluded: int = 10_000  # documents
    passage_chunks: int = 64  # of one passage


def state_of(database: Database) -> pb.DatabaseState:
    """The message that tells the contents of two databases apart."""
    return pb.DatabaseState(fingerprint=database.fingerprint, version=database.version)


def describe_state(state: pb.DatabaseState) -> str:
    """The words for a database state in an error."""
    return f"database {state.fingerprint} version {state.version}"


def pack_vectors(vectors_QW: Float[np.ndarray, "Q W"]) -> pb.Vectors:
    """Gives vectors as they travel."""
    data = np.ascontiguousarray(vectors_QW, _FLOAT).tobytes()
    return pb.Vectors(data=data, width=vectors_QW.shape[1])


def unpack_vectors(
    vectors: pb.Vectors, width: int, limits: Limits
) -> Float[np.ndarray, "Q W"]:
    """Gives vectors that can be searched for.

    Raises:
        ValueError: if they are none, too many, of another width, zero or not finite.
    """
    if vectors.width != width:
        raise ValueError(
            f"vectors.width is {vectors.width}, the database's is {width}: embed with "
            "the embedder that the database was built with"
        )
    found_QW = _unpack(vectors.data, _FLOAT, width, "vectors.data")
    _check_count(len(found_QW), "vectors", limits.queries)
    checks.check_vectors(found_QW, "vectors")
    return found_QW.astype(np.float32, copy=False)


def pack_tokens(tokens_QM: Integer[np.ndarray, "Q M"]) -> pb.TokenChunks:
    """Gives chunks of tokens as they travel."""
    data = np.ascontiguousarray(tokens_QM, _TOKEN).tobytes()
    return pb.TokenChunks(data=data, chunk_len=tokens_QM.shape[1])


def unpack_tokens(
    chunks: pb.TokenChunks, vocab_size: int, limits: Limits
) -> Int[np.ndarray, "Q M"]:
    """Gives chunks of the database's tokens.

    Raises:
        ValueError: if they are none, too many, too long or not in the vocabulary.
    """
    if not 1 <= chunks.chunk_len <= limits.text_bytes:
        raise ValueError(
            f"token_chunks.chunk_len must lie in 1..{limits.text_bytes}, is "
            f"{chunks.chunk_len}"
        )
    tokens_QM = _unpack(chunks.data, _TOKEN, chunks.chunk_len, "token_chunks.data")
    _check_count(len(tokens_QM), "token_chunks", limits.queries)
    if tokens_QM.min() < 0 or tokens_QM.max() >= vocab_size:
        raise ValueError(
            f"token_chunks: ids {tokens_QM.min()}..{tokens_QM.max()} are outside "
            f"0..{vocab_size - 1}"
        )
    return tokens_QM


def _unpack(data: bytes, dtype: str, row_len: int, name: str) -> np.ndarray:
    row_bytes = row_len * np.dtype(dtype).itemsize
    if len(data) % row_bytes:
        raise ValueError(
            f"{name} has {len(data)} bytes, no multiple of the {row_bytes} of a row"
        )
    return np.frombuffer(data, dtype).reshape(-1, row_len)


def _check_count(count: int, name: str, most: int) -> None:
    if not 1 <= count <= most:
        raise ValueError(f"{name} must hold 1..{most} queries, there are {count}")


def checked_texts(texts: Sequence[str], limits: Limits) -> list[str]:
    """Gives texts that can be embedded.

    Raises:
        ValueError: if they are none or too many, or one is empty, huge or holds NUL.
    """
    _check_count(len(texts), "texts", limits.queries)
    for row, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"texts[{row}] is empty")
        if "\0" in text:
            raise ValueError(f"texts[{row}] holds a NUL character")
        size_bytes = len(text.encode())
        if size_bytes > limits.text_bytes:
            raise ValueError(
                f"texts[{row}] has {size_bytes} bytes, more than {limits.text_bytes}: "
                "cut it into several queries"
            )
    return list(texts)


def check_search(
    k: int, num_queries: int, excluded: Sequence[str], limits: Limits
) -> None:
    """Raises ValueError, naming it, if a number asked for is out of bounds."""
    if not 1 <= k <= limits.k:
        raise ValueError(f"k must lie in 1..{limits.k}, is {k}")
    if num_queries * k > limits.results:
        raise ValueError(
            f"{num_queries} queries with k = {k} are {num_queries * k} results, more "
            f"than {limits.results}: ask with fewer queries"
        )
    if len(excluded) > limits.excluded:
        raise ValueError(
            f"exclude_documents names {len(excluded)} documents, more than "
            f"{limits.excluded}"
        )


def check_passages(
    chunk_ids: Sequence[int], passage_len: int, database: Database, limits: Limits
) -> None:
    """Raises ValueError if there is no such passage, or none of such length."""
    check_passage_len(passage_len, database.chunk_len, limits)
    if len(chunk_ids) > limits.results:
        raise ValueError(
            f"chunk_ids names {len(chunk_ids)} chunks, more than {limits.results}"
        )
    num_chunks = len(database.snapshot.chunks())
    for chunk_id in chunk_ids:
        if not 0 <= chunk_id < num_chunks:
            raise ValueError(
                f"chunk_ids: {chunk_id} is outside 0..{num_chunks - 1}, the chunks of "
                "the database"
            )


def check_passage_len(passage_len: int, chunk_len: int, limits: Limits) -> None:
    """Raises ValueError if passages can't have this length."""
    most = limits.passage_chunks * chunk_len
    if not 0 <= passage_len <= most or passage_len % chunk_len:
        raise ValueError(
            f"passage_len must be a multiple of {chunk_len} in 0..{most}, is "
            f"{passage_len}"
        )


def read_passages(
    database: Database, chunk_ids: Sequence[int], passage_len: int, sources: bool
) -> list[pb.Passage]:
    """Reads passages of the database from disk, as messages."""
    passages = [pb.Passage(chunk_id=chunk_id) for chunk_id in chunk_ids]
    if not passages:
        return []
    ids_X = np.array(chunk_ids, np.int64)
    if passage_len:
        tokens_XR, lengths_X = database.snapshot.chunks().passages(ids_X, passage_len)
        for passage, tokens_R, length in zip(
            passages, tokens_XR.astype(_TOKEN), lengths_X.tolist(), strict=True
        ):
            passage.tokens, passage.length = tokens_R.tobytes(), length
    if sources:
        distances_X = np.zeros(len(ids_X))  # of no search: a message has none
        found_X = results.passages_at(database.snapshot, ids_X, distances_X)
        for passage, found in zip(passages, found_X, strict=True):
            passage.text, passage.continuation = found.text, found.continuation
            passage.document_id, passage.title = found.document_id, found.title
            passage.uri, passage.licence = found.uri, found.licence
            passage.offset = found.offset
    return passages


def found_of(passage: pb.Passage, distance: float) -> Found:
    """Gives a passage with its sources, as `Database.found` does."""
    return Found(
        text=passage.text,
        continuation=passage.continuation,
        document_id=passage.document_id,
        title=passage.title,
        uri=passage.uri,
        licence=passage.licence,
        offset=passage.offset,
        distance=distance,
        chunk_id=passage.chunk_id,
    )


def retrieved_of(
    response: pb.SearchResponse, shape: tuple[int, int], passage_len: int
) -> Retrieved:
    """Gives the neighbours of Q chunks, `shape` (Q, N), as `Database.retrieve` does."""
    found = Retrieved(
        np.zeros((*shape, passage_len), np.int32),
        np.zeros(shape, np.int32),
        np.full(shape, -1, np.int64),
        np.full(shape, np.inf, np.float32),
    )
    passages = {passage.chunk_id: passage for passage in response.passages}
    for row, neighbours in enumerate(response.results):
        count = len(neighbours.chunk_ids)
        found.chunk_ids_QN[row, :count] = neighbours.chunk_ids
        found.distances_QN[row, :count] = neighbours.distances
        for place, chunk_id in enumerate(neighbours.chunk_ids):
            passage = passages[chunk_id]
            found.tokens_QNR[row, place] = tokens_of(passage)
            found.lengths_QN[row, place] = passage.length
    return found


def tokens_of(passage: pb.Passage) -> Int[np.ndarray, " R"]:
    """The tokens of a passage."""
    return np.frombuffer(passage.tokens, _TOKEN).astype(np.int32)


def pack_found(
    ids_QN: np.ndarray, distances_QN: np.ndarray, k: int
) -> pb.ShardSearchResponse:
    """Packs what a shard found, filled up to k with -1 at infinity where there is no more."""
    absent = ((0, 0), (0, k - ids_QN.shape[1]))
    ids_QN = np.pad(ids_QN, absent, constant_values=-1)
    distances_QN = np.pad(distances_QN, absent, constant_values=np.inf)
    return pb.ShardSearchResponse(
        chunk_ids=ids_QN.astype(_ID).tobytes(),
        distances=distances_QN.astype(_FLOAT).tobytes(),
    )


def unpack_found(
    response: pb.ShardSearchResponse, num_queries: int, k: int
) -> tuple[Int[np.ndarray, "Q N"], Float[np.ndarray, "Q N"]]:
    """Reverses `pack_found`; ValueError if the shard sent another number of results."""
    ids_QN = _unpack(response.chunk_ids, _ID, k, "chunk_ids")
    distances_QN = _unpack(response.distances, _FLOAT, k, "distances")
    if not len(ids_QN) == len(distances_QN) == num_queries:
        raise ValueError(
            f"{num_queries} queries have {len(ids_QN)} rows of chunk_ids and "
            f"{len(distances_QN)} of distances"
        )
    return ids_QN.astype(np.int64), distances_QN.astype(np.float32)
