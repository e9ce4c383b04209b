"""Bytes become requests or a status that says why not; all are counted."""

import asyncio

import grpc
import pytest

from data_pipeline.service.server.endpoints import Endpoint, Receiving
from data_pipeline.service.server.observability import Metrics
from data_pipeline.service.server.server import Listening
from data_pipeline.service.wire import retrieval_pb2 as pb
from data_pipeline.service.wire.stubs import stub_of
from tests.served import eventually

_SERVICE = "retro_jax.retrieval.v1.Retrieval"
_TEXT = pb.Texts(texts=["a text"])


@pytest.mark.parametrize("data", [b"\x0a\x04\x0a\x02\xff\xfe\x20\x01", b"\xff\xff\xff"])
def test_bytes_that_are_no_request_or_not_utf8(service, data):
    call = service[3].unary_unary("/retro_jax.retrieval.v1.Retrieval/Search")
    with pytest.raises(grpc.RpcError) as caught:
        call(data, timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "SearchRequest, or a text in it is not UTF-8" in caught.value.details()


def test_a_message_too_large_is_refused_and_the_connection_goes_on(stub):
    huge = pb.SearchRequest(texts=pb.Texts(texts=["a" * (9 << 20)]), k=1)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Search(huge, timeout=10)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(stub.Search(pb.SearchRequest(texts=_TEXT, k=1)).results) == 1


def test_requests_are_counted(service, client):
    metrics = service[1].metrics

    def counted(code):
        return metrics.value("retro_requests_total", method="Search", code=code)

    before = counted("OK"), counted("INVALID_ARGUMENT")
    client.search(["a"], 1)
    with pytest.raises(ValueError, match="k must lie"):
        client.search(["a"], 0)
    assert (counted("OK"), counted("INVALID_ARGUMENT")) == (
        before[0] + 1,
        before[1] + 1,
    )
    assert metrics.value("retro_request_seconds_count", method="Search") > 1
    for kind in ("texts", "facts"):
        assert metrics.value("retro_in_flight", kind=kind) == 0
    assert metrics.value("retro_in_flight_bytes") == 0


class Body:
    """The body of a call, which comes when it is set."""

    def __init__(self):
        self.came = asyncio.get_running_loop().create_future()
        self.is_read = False

    async def read(self):
        self.is_read = True
        return await self.came


def test_so_many_bodies_are_received_at_once_and_each_has_its_time(running):
    async def receive():
        receiving = Receiving(1, timeout_s=0.2)
        slow, next_ = Body(), Body()
        next_.came.set_result(b"a body")
        reads = [
            asyncio.create_task(receiving.read(body, 10)) for body in (slow, next_)
        ]
        await asyncio.sleep(0.05)
        before = slow.is_read, next_.is_read
        return before, await asyncio.gather(*reads, return_exceptions=True)

    before, (slow, read) = running.run(receive())
    assert before == (True, False)  # the next one's is left where it is
    assert isinstance(slow, TimeoutError)
    assert read == b"a body"


def endpoint(method, longest_s: float) -> Endpoint:
    methods = {"Tokenizer": (pb.TokenizerRequest, method)}
    return Endpoint(_SERVICE, methods, lambda request: None, Metrics(), longest_s)


@pytest.mark.parametrize("is_read", [True, False])
def test_an_answer_is_in_hand_until_it_is_read_or_its_caller_gone(running, is_read):
    async def answer(request, call):
        return pb.TokenizerModel(model=bytes(sizes.pop(0)))

    large = 30 << 20  # more than the buffers between the two
    metrics, sizes = Metrics(), [large, large, 10]
    listening = Listening(max_in_flight_bytes=40 << 20, drain_s=5)
    made = running._serve(endpoint(answer, 30), listening, metrics, None)
    name, in_hand = f"/{_SERVICE}/Tokenizer", "retro_in_flight_bytes"
    any_size = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(made.address, any_size) as channel:
        unread = channel.unary_stream(name)(b"")  # read only when it is iterated over
        eventually(lambda: metrics.value(in_hand) > large)
        with pytest.raises(grpc.RpcError, match="overloaded: .* bytes of requests"):
            channel.unary_unary(name)(b"", timeout=10)
        assert len(channel.unary_unary(name)(b"", timeout=10)) < 100
        if is_read:
            assert len(next(unread)) > large
        else:
            unread.cancel()
        eventually(lambda: metrics.value(in_hand) == 0)


def test_a_method_reserves_before_it_works(running):
    async def answer(request, call):
        call.reserve(6 << 20)
        raise AssertionError("not to be reached")

    listening = Listening(max_in_flight_bytes=5 << 20, drain_s=5)
    made = running._serve(endpoint(answer, 10), listening, Metrics(), None)
    with grpc.insecure_channel(made.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            stub_of(channel, "Retrieval").Tokenizer(pb.TokenizerRequest(), timeout=10)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError, match="a call without a request"):
            call = channel.stream_unary(f"/{_SERVICE}/Tokenizer")
            call(iter(()), timeout=10)
