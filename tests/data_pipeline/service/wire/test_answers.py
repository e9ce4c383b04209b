"""Answers that are none are refused by the client, whatever is wrong with them."""

import concurrent.futures
from collections.abc import Callable

import grpc
import numpy as np
import pytest

from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.wire import answers, messages
from data_pipeline.service.wire import retrieval_pb2 as pb

_CHUNK_LEN, _VOCAB = 4, 100
_CLASSES = {
    "Search": pb.SearchRequest,
    "Passages": pb.PassagesRequest,
    "Describe": pb.DescribeRequest,
    "Tokenizer": pb.TokenizerRequest,
}


def _passage(chunk_id: int, passage_len: int) -> pb.Passage:
    tokens = np.arange(passage_len, dtype="<i4").tobytes()
    length = max(0, passage_len - 1)
    return pb.Passage(
        chunk_id=chunk_id, tokens=tokens, length=length, text="a", document_id="b"
    )


def _right(request):
    """What a service answers."""
    match request:
        case pb.DescribeRequest():
            return pb.Description(
                database=pb.DatabaseState(fingerprint="f"),
                chunk_len=_CHUNK_LEN,
                width=2,
                tokenizer_fingerprint="t",
                embedder_fingerprint="e",
                num_shards=1,
                vocab_size=_VOCAB,
            )
        case pb.TokenizerRequest():
            return pb.TokenizerModel(model=b"model", fingerprint="t")
        case pb.PassagesRequest():
            found = [_passage(n, request.passage_len) for n in request.chunk_ids]
            return pb.PassagesResponse(passages=found)
    row = pb.Neighbours(chunk_ids=[7, 3], distances=[0.5, 1.5])
    wanted = request.passage_len or not request.without_sources
    return pb.SearchResponse(
        results=[row, row],
        passages=[_passage(n, request.passage_len) for n in (3, 7)] if wanted else [],
        database=pb.DatabaseState(fingerprint="f"),
    )


class Server:
    """A server that answers as `_right` does, changed by `spoil`."""

    def __init__(self):
        self.spoil: Callable[[object], object] = lambda answer: None
        pool = concurrent.futures.ThreadPoolExecutor(2)
        self._server = grpc.server(pool)
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._answer,
                request_deserializer=kind.FromString,
                response_serializer=lambda answer: answer.SerializeToString(),
            )
            for name, kind in _CLASSES.items()
        }
        service = pb.DESCRIPTOR.services_by_name["Retrieval"].full_name
        handler = grpc.method_handlers_generic_handler(service, handlers)
        self._server.add_generic_rpc_handlers((handler,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _answer(self, request, context):
        answer = _right(request)
        self.spoil(answer)
        return answer

    def stop(self):
        self._server.stop(0)


@pytest.fixture(scope="module")
def server():
    made = Server()
    yield made
    made.stop()


@pytest.fixture
def client(server):
    server.spoil = lambda answer: None
    with RetrievalClient(f"grpc://127.0.0.1:{server.port}") as made:
        yield made


_TOKENS_QM = np.ones((2, _CHUNK_LEN), np.int32)
_CALLS = {
    "search": lambda client: client.search(["a", "b"], 3),
    "nearest": lambda client: client.nearest(np.ones((2, 2), np.float32), 3),
    "retrieve": lambda client: client.retrieve(_TOKENS_QM, 3),
    "sources": lambda client: client.retrieve_with_sources(_TOKENS_QM, 3),
    "found": lambda client: client.found(5),
    "describe": lambda client: client.describe(),
    "tokenizer": lambda client: client.tokenizer_model(),
}
_SEARCHES = ("search", "nearest", "retrieve", "sources")
_WITH_PASSAGES = ("search", "retrieve", "sources")
_WITH_TOKENS = ("retrieve", "sources")


def _tokens(*values: int) -> Callable:
    data = np.array(values, "<i4").tobytes()
    return lambda answer: setattr(answer.passages[0], "tokens", data)


def _row(**fields) -> Callable:
    def spoil(answer) -> None:
        answer.results[1].CopyFrom(pb.Neighbours(**fields))

    return spoil


def _set(**fields) -> Callable:
    def spoil(answer) -> None:
        for name, value in fields.items():
            setattr(answer, name, value)

    return spoil


def _set_first(**fields) -> Callable:
    return lambda answer: _set(**fields)(answer.passages[0])


_NAN, _INF = float("nan"), float("inf")
_BAD: list[tuple[str, tuple[str, ...], Callable]] = [
    ("empty", tuple(_CALLS), lambda answer: answer.Clear()),
    ("fewer results", _SEARCHES, lambda answer: answer.results.pop()),
    ("more results", _SEARCHES, lambda answer: answer.results.add()),
    ("distance missing", _SEARCHES, _row(chunk_ids=[3, 7], distances=[1.0])),
    ("id missing", _SEARCHES, _row(chunk_ids=[3], distances=[1.0, 2.0])),
    ("more than k", _SEARCHES, _row(chunk_ids=[3, 7, 8, 9], distances=[1, 2, 3, 4])),
    ("negative id", _SEARCHES, _row(chunk_ids=[-1, 7], distances=[1.0, 2.0])),
    ("id twice", _SEARCHES, _row(chunk_ids=[3, 3], distances=[1.0, 2.0])),
    ("nan", _SEARCHES, _row(chunk_ids=[3, 7], distances=[_NAN, 2.0])),
    ("infinite", _SEARCHES, _row(chunk_ids=[3, 7], distances=[1.0, _INF])),
    ("farthest first", _SEARCHES, _row(chunk_ids=[3, 7], distances=[2.0, 1.0])),
    ("equal, not by id", _SEARCHES, _row(chunk_ids=[7, 3], distances=[1.0, 1.0])),
    ("partial without a shard", _SEARCHES, _set(partial=True)),
    ("missing, not partial", _SEARCHES, lambda answer: answer.missing_shards.add()),
    ("unasked passage", _SEARCHES, lambda answer: answer.passages.add(chunk_id=99)),
    ("passage missing", _WITH_PASSAGES, lambda answer: answer.passages.pop()),
    (
        "passage twice",
        _WITH_PASSAGES,
        lambda answer: answer.passages.append(answer.passages[0]),
    ),
    ("another's passage", (*_WITH_PASSAGES, "found"), _set_first(chunk_id=4)),
    ("offset", (*_WITH_PASSAGES, "found"), _set_first(offset=-1)),
    ("one token", _WITH_PASSAGES, _tokens(1)),
    ("half a token", _WITH_PASSAGES, _set_first(tokens=b"\1\0")),
    ("token too large", _WITH_TOKENS, _tokens(*range(7), 2**30)),
    ("token outside", _WITH_TOKENS, _tokens(*range(7), _VOCAB)),
    ("token negative", _WITH_TOKENS, _tokens(*range(7), -5)),
    ("too long", _WITH_PASSAGES, _set_first(length=10**6)),
    ("negative length", _WITH_PASSAGES, _set_first(length=-3)),
    ("nothing found", _WITH_TOKENS, _set_first(length=0)),
    ("no chunks", ("describe",), _set(chunk_len=0)),
    ("huge chunks", ("describe",), _set(chunk_len=2**30)),
    ("no vocabulary", ("describe",), _set(vocab_size=0)),
    ("negative width", ("describe",), _set(width=-1)),
    ("unnamed", ("describe",), _set(tokenizer_fingerprint="")),
    ("no model", ("tokenizer",), _set(model=b"")),
]


@pytest.mark.parametrize("call", _CALLS)
def test_a_right_answer_is_taken(client, call):
    assert _CALLS[call](client) is not None


@pytest.mark.parametrize(
    ("call", "spoil"),
    [
        pytest.param(call, spoil, id=f"{what}-{call}")
        for what, calls, spoil in _BAD
        for call in calls
    ],
)
def test_a_bad_answer_is_one_error(client, server, call, spoil):
    if call in _WITH_TOKENS:
        client._description  # noqa: B018  which is right
    server.spoil = spoil
    with pytest.raises(answers.BadAnswerError, match="broken or of another release: "):
        _CALLS[call](client)


def _drawn(rng: np.random.Generator) -> pb.SearchResponse:
    """Two rows and three passages of small numbers, most of which do not fit together."""
    distances = np.array([-1.0, 0.5, 0.5, 1.0, np.nan, np.inf])

    def passage() -> pb.Passage:
        tokens = rng.choice([-1, 0, 1, _VOCAB], 2, p=[0.05, 0.45, 0.45, 0.05])
        return pb.Passage(
            chunk_id=rng.integers(0, 3),
            tokens=tokens.astype("<i4").tobytes(),
            length=rng.integers(0, 4),
        )

    rows = [
        pb.Neighbours(
            chunk_ids=rng.integers(0, 3, 1), distances=rng.choice(distances, 1)
        )
        for _ in range(2)
    ]
    count = rng.integers(0, 4)
    return pb.SearchResponse(results=rows, passages=[passage() for _ in range(count)])


def test_what_passes_can_be_used_and_nothing_else_is_raised():
    request = pb.SearchRequest(
        texts=pb.Texts(texts=["a", "b"]), k=2, passage_len=2, without_sources=True
    )
    rng, num_right = np.random.default_rng(0), 0
    for _ in range(3000):
        response = _drawn(rng)
        try:
            answers.check_search(response, request, _VOCAB)
        except answers.BadAnswerError:
            continue
        num_right += 1
        found = messages.retrieved_of(response, (2, 2), 2)
        is_there = found.chunk_ids_QN >= 0
        assert ((found.tokens_QNR >= 0) & (found.tokens_QNR < _VOCAB)).all()
        assert (found.lengths_QN[is_there] >= 1).all()
        assert np.isfinite(found.distances_QN[is_there]).all()
    assert num_right > 9
