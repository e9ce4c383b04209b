"""The one place where answers of a service are checked against what was asked.

A server may be broken, of another release, or somebody else's. What passes here has the
counts, shapes, order and ranges that a database's answers have, so nothing behind it can fail
or be misled by more than wrong contents.
"""

import collections
import math
from collections.abc import Sequence

import numpy as np

from data_pipeline.service.wire import retrieval_pb2 as pb

_TOKEN_BYTES = _FLOAT_BYTES = 4
_LONGEST_CHUNK = 1 << 20  # tokens; far more than any model reads


class BadAnswerError(ConnectionError):
    """A server answered what is no answer to the question."""


def _check(is_right: bool, problem: str) -> None:
    if not is_right:
        raise BadAnswerError(f"the server is broken or of another release: {problem}")


def check_search(
    response: pb.SearchResponse, request: pb.SearchRequest, vocab_size: int | None
) -> None:
    """Raises BadAnswerError if this is no answer to the request.

    Args:
        vocab_size: of the tokens in the passages; needed where tokens were asked for.
    """
    count, results = _num_queries(request), response.results
    _check(len(results) == count, f"{len(results)} results for {count} queries")
    for row, neighbours in enumerate(results):
        _check_neighbours(neighbours, request.k, f"results[{row}]")
    missing = len(response.missing_shards)
    _check(
        response.partial == bool(missing),
        f"partial is {response.partial}, with {missing} missing shards",
    )
    wants_passages = request.passage_len > 0 or not request.without_sources
    found = {chunk_id for row in results for chunk_id in row.chunk_ids}
    given = [passage.chunk_id for passage in response.passages]
    _check(
        len(given) == len(set(given))
        and set(given) == (found if wants_passages else set()),
        f"passages of {len(given)} chunks, of {len(found)} that were found",
    )
    _check_passages(response.passages, request.passage_len, vocab_size)


def _num_queries(request: pb.SearchRequest) -> int:
    match request.WhichOneof("queries"):
        case "texts":
            return len(request.texts.texts)
        case "token_chunks":
            chunks = request.token_chunks
            return len(chunks.data) // (_TOKEN_BYTES * max(1, chunks.chunk_len))
        case _:
            vectors = request.vectors
            return len(vectors.data) // (_FLOAT_BYTES * max(1, vectors.width))


def _check_neighbours(neighbours: pb.Neighbours, k: int, name: str) -> None:
    ids, distances = list(neighbours.chunk_ids), list(neighbours.distances)
    _check(
        len(ids) == len(distances) <= k,
        f"{name} has {len(ids)} ids and {len(distances)} distances, k is {k}",
    )
    _check(min(ids, default=0) >= 0, f"{name} has the id {min(ids, default=0)}")
    _check(len(set(ids)) == len(ids), f"{name} has an id twice")
    _check(all(map(math.isfinite, distances)), f"{name} has a distance that is none")
    ranks = list(zip(distances, ids, strict=True))
    _check(ranks == sorted(ranks), f"{name} is not in order of distance and id")


def _check_passages(
    passages: Sequence[pb.Passage], passage_len: int, vocab_size: int | None
) -> None:
    for passage in passages:
        name = f"the passage of chunk {passage.chunk_id}"
        _check(passage.offset >= 0, f"{name} begins at byte {passage.offset}")
        size_bytes = len(passage.tokens)
        _check(
            size_bytes == _TOKEN_BYTES * passage_len,
            f"{name} has {size_bytes} bytes of tokens, not those of {passage_len}",
        )
        low = min(1, passage_len)
        _check(
            low <= passage.length <= passage_len,
            f"{name} has {passage.length} tokens of text, of {passage_len}",
        )
    if passages and passage_len:
        tokens = np.frombuffer(b"".join(p.tokens for p in passages), "<i4")
        low, high = int(tokens.min()), int(tokens.max())
        _check(
            vocab_size is not None and 0 <= low <= high < vocab_size,
            f"tokens {low}..{high}, the vocabulary has {vocab_size}",
        )


def check_passages(response: pb.PassagesResponse, request: pb.PassagesRequest) -> None:
    """Raises BadAnswerError if these are not the passages that were asked for."""
    given = collections.Counter(passage.chunk_id for passage in response.passages)
    _check(
        given == dict.fromkeys(request.chunk_ids, 1),
        f"passages of the chunks {sorted(given)}, not of {list(request.chunk_ids)}",
    )
    _check_passages(response.passages, request.passage_len, None)


def check_description(description: pb.Description) -> None:
    """Raises BadAnswerError if no database is described."""
    for name in ("chunk_len", "width", "num_shards", "vocab_size"):
        value = getattr(description, name)
        _check(value >= 1, f"its database has {name} = {value}")
    _check(
        description.chunk_len <= _LONGEST_CHUNK,
        f"its database has chunk_len = {description.chunk_len}",
    )
    _check(bool(description.database.fingerprint), "its database has no fingerprint")
    for name in ("tokenizer_fingerprint", "embedder_fingerprint"):
        _check(bool(getattr(description, name)), f"its database has no {name}")


def check_tokenizer(answer: pb.TokenizerModel) -> None:
    """Raises BadAnswerError if there is no tokenizer."""
    _check(bool(answer.model and answer.fingerprint), "it sent no tokenizer")
