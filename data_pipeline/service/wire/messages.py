"""Conversions between numpy and the messages of `retrieval.proto`, and limits of requests.

Everything that comes from outside passes here before it is used: a ValueError names what
is wrong and becomes INVALID_ARGUMENT.
Letters here: X passages.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int, Integer

from data_pipeline.database import Database, Found, Retrieved, results
from data_pipeline.index import checks
from data_pipeline.service.wire import retrieval_pb2 as pb

_FLOAT, _TOKEN, _ID = "<f4", "<i4", "<i8"
_KB, _MB = 1 << 10, 1 << 20
# Of a token, about: its text must not be decoded before it is known to be short enough.
_TEXT_BYTES_OF_TOKEN = 4
# Passages read at once, before somebody looks whether they are still wanted.
_READ_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The most that one request may ask for, in numbers and in bytes."""

    k: int = 1000
    queries: int = 2048
    results: int = 65_536  # queries times k
    text_bytes: int = 32 * _KB  # of one query
    texts_bytes: int = _MB  # of all queries
    vectors_bytes: int = 6 * _MB  # of all queries, given or embedded
    excluded: int = 10_000  # documents
    excluded_bytes: int = _MB  # of their names
    passage_chunks: int = 64  # of one passage
    answer_bytes: int = 32 * _MB


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
    most_tokens = limits.text_bytes // _TEXT_BYTES_OF_TOKEN
    if not 1 <= chunks.chunk_len <= most_tokens:
        raise ValueError(
            f"token_chunks.chunk_len must lie in 1..{most_tokens}, is "
            f"{chunks.chunk_len}"
        )
    tokens_QM = _unpack(chunks.data, _TOKEN, chunks.chunk_len, "token_chunks.data")
    _check_count(len(tokens_QM), "token_chunks", limits.queries)
    most_tokens = limits.texts_bytes // _TEXT_BYTES_OF_TOKEN
    if tokens_QM.size > most_tokens:
        raise ValueError(
            f"token_chunks has {tokens_QM.size} tokens, more than {most_tokens}: ask "
            "with fewer queries"
        )
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
        ValueError: if they are none, too many or too large, or one is empty, huge or
            holds NUL.
    """
    _check_count(len(texts), "texts", limits.queries)
    total_bytes = 0
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
        total_bytes += size_bytes
        if total_bytes > limits.texts_bytes:
            raise ValueError(
                f"texts have more than {limits.texts_bytes} bytes: ask with fewer queries"
            )
    return list(texts)


def size_of_query(query: str | Int[np.ndarray, " M"]) -> int:
    """About the bytes of a query's text, which tokens do not have yet."""
    return len(query) if isinstance(query, str) else _TEXT_BYTES_OF_TOKEN * len(query)


def check_search(
    k: int, num_queries: int, width: int, excluded: Sequence[str], limits: Limits
) -> None:
    """Raises ValueError, naming it, if a number asked for is out of bounds."""
    if not 1 <= k <= limits.k:
        raise ValueError(f"k must lie in 1..{limits.k}, is {k}")
    if num_queries * k > limits.results:
        raise ValueError(
            f"{num_queries} queries with k = {k} are {num_queries * k} results, more "
            f"than {limits.results}: ask with fewer queries"
        )
    vectors_bytes = num_queries * width * np.dtype(_FLOAT).itemsize
    if vectors_bytes > limits.vectors_bytes:
        raise ValueError(
            f"{num_queries} vectors of width {width} have {vectors_bytes} bytes, more "
            f"than {limits.vectors_bytes}: ask with fewer queries"
        )
    if len(excluded) > limits.excluded:
        raise ValueError(
            f"exclude_documents names {len(excluded)} documents, more than "
            f"{limits.excluded}"
        )
    names_bytes = sum(len(name.encode()) for name in excluded)
    if names_bytes > limits.excluded_bytes:
        raise ValueError(
            f"exclude_documents has {names_bytes} bytes, more than "
            f"{limits.excluded_bytes}"
        )


def check_passages(
    request: pb.PassagesRequest, database: Database, limits: Limits
) -> int:
    """Gives about how many bytes the passages have, before any is read.

    Raises:
        ValueError: if there is no such passage, none of such length, or too many.
    """
    chunk_ids, passage_len = request.chunk_ids, request.passage_len
    check_passage_len(passage_len, database.chunk_len, limits)
    if len(chunk_ids) > limits.results:
        raise ValueError(
            f"chunk_ids names {len(chunk_ids)} chunks, more than {limits.results}"
        )
    num_chunks, distinct = len(database.snapshot.chunks()), set(chunk_ids)
    for chunk_id in distinct:
        if not 0 <= chunk_id < num_chunks:
            raise ValueError(
                f"chunk_ids: {chunk_id} is outside 0..{num_chunks - 1}, the chunks of "
                "the database"
            )
    return check_answer(
        len(distinct), passage_len, request.without_sources, database.chunk_len, limits
    )


def check_passage_len(passage_len: int, chunk_len: int, limits: Limits) -> None:
    """Raises ValueError if passages can't have this length."""
    most = limits.passage_chunks * chunk_len
    if not 0 <= passage_len <= most or passage_len % chunk_len:
        raise ValueError(
            f"passage_len must be a multiple of {chunk_len} in 0..{most}, is "
            f"{passage_len}"
        )


def check_answer(
    num_passages: int,
    passage_len: int,
    without_sources: bool,
    chunk_len: int,
    limits: Limits,
) -> int:
    """Gives about how many bytes passages have, before any is read.

    Raises:
        ValueError: if those are more than an answer may have.
    """
    sources_bytes = 0 if without_sources else 2 * chunk_len * _TEXT_BYTES_OF_TOKEN
    passage_bytes = passage_len * np.dtype(_TOKEN).itemsize + sources_bytes
    size_bytes = num_passages * passage_bytes
    if size_bytes > limits.answer_bytes:
        raise ValueError(
            f"{num_passages} passages of about {passage_bytes} bytes are more than the "
            f"{limits.answer_bytes} of an answer: ask for fewer or shorter ones"
        )
    return size_bytes


def read_passages(
    database: Database,
    chunk_ids: Sequence[int],
    passage_len: int,
    sources: bool,
    *,
    most_bytes: int = Limits().answer_bytes,
    is_given_up: Callable[[], bool] = lambda: False,
) -> list[pb.Passage]:
    """Reads passages of the database from disk, as messages; each once.

    Args:
        most_bytes: of all; texts and titles are as long as they are.
        is_given_up: says that nobody waits any more; what was read until then is given.
    Raises:
        ValueError: if they have more bytes than that.
    """
    passages, size_bytes = list[pb.Passage](), 0
    distinct = list(dict.fromkeys(chunk_ids))
    for start in range(0, len(distinct), _READ_AT_ONCE):
        if is_given_up():
            break
        ids_X = np.array(distinct[start : start + _READ_AT_ONCE], np.int64)
        block = _read_block(database, ids_X, passage_len, sources)
        passages += block
        size_bytes += sum(passage.ByteSize() for passage in block)
        if size_bytes > most_bytes:
            raise ValueError(
                f"{len(distinct)} passages have more than the {most_bytes} bytes of an "
                "answer: ask for fewer or shorter ones"
            )
    return passages


def _read_block(
    database: Database,
    ids_X: Int[np.ndarray, " X"],
    passage_len: int,
    sources: bool,
) -> list[pb.Passage]:
    passages = [pb.Passage(chunk_id=chunk_id) for chunk_id in ids_X.tolist()]
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
