"""Bytes become requests or a status that says why not; all are counted."""

import grpc
import pytest

from data_pipeline.service.wire import retrieval_pb2 as pb

_TEXT = pb.Texts(texts=["a text"])


@pytest.mark.parametrize("data", [b"\x0a\x04\x0a\x02\xff\xfe\x20\x01", b"\xff\xff\xff"])
def test_bytes_that_are_no_request_or_not_utf8(service, data):
    call = service[3].unary_unary("/retro_jax.retrieval.v1.Retrieval/Search")
    with pytest.raises(grpc.RpcError) as caught:
        call(data, timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "SearchRequest, or a text in it is not UTF-8" in caught.value.details()


def test_a_message_too_large_is_refused_and_the_connection_goes_on(stub):
    huge = pb.SearchRequest(texts=pb.Texts(texts=["a" * (65 << 20)]), k=1)
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
    assert metrics.value("retro_in_flight") == 0
