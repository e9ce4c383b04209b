"""The methods of a service are those of the contract, with its messages."""

import pytest

from data_pipeline.service.wire import retrieval_pb2 as pb
from data_pipeline.service.wire.stubs import stub_of


class Echo:
    """A channel that gives back what it was asked for."""

    def unary_unary(self, path, request_serializer, response_deserializer):
        return lambda request: (
            path,
            request_serializer(request),
            response_deserializer(b""),
        )


def test_methods_have_their_paths_and_messages():
    stub = stub_of(Echo(), "Shard")
    assert set(vars(stub)) == {"Search", "Passages", "Hold"}
    request = pb.HoldRequest(holder="a", hold_s=2.0)
    path, data, answer = stub.Hold(request)
    assert path == "/retro_jax.retrieval.v1.Shard/Hold"
    assert pb.HoldRequest.FromString(data) == request
    assert answer == pb.HoldResponse()
    with pytest.raises(KeyError, match="Nothing"):
        stub_of(Echo(), "Nothing")
