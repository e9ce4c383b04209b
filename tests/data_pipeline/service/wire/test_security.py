"""TLS and tokens let in whom they should."""

import threading
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.wire import security

_TLS = Path(__file__).parents[4] / "tests" / "tls"


_QUERY = ["the same again"]


@pytest.mark.parametrize("token", [None, "s3cret"])
def test_tls_and_token(running, sharded_database, token):
    cert, key = _TLS / "localhost.crt", _TLS / "localhost.key"
    secure = {"tls_cert": cert, "tls_key": key, "token": token}
    shard = running.shard(sharded_database, 0, 1, **secure)
    made = running.router(
        sharded_database,
        shard.address,
        credentials=security.channel_credentials(cert),
        **secure,
    )
    address = f"grpcs://localhost:{made.port}"
    with RetrievalClient(address, tls_ca=cert, token=token) as client:
        assert client.search(_QUERY, 2) == sharded_database.search(_QUERY, 2)
    with (
        RetrievalClient(address, tls_ca=_TLS / "other.crt", timeout_s=2) as client,
        pytest.raises(ConnectionError, match="UNAVAILABLE: no authority .* tls_ca"),
    ):
        client.search(_QUERY, 2)
    with (
        RetrievalClient(f"grpc://localhost:{made.port}", timeout_s=2) as client,
        pytest.raises(ConnectionError, match="UNAVAILABLE: .* use grpcs://"),
    ):
        client.search(_QUERY, 2)
    if token is None:
        return
    for wrong in (None, "s3cre", "s3cret2"):
        with (
            RetrievalClient(address, tls_ca=cert, token=wrong) as client,
            pytest.raises(ValueError, match="this server wants its token"),
        ):
            client.search(_QUERY, 2)
    credentials = security.channel_credentials(cert)
    with grpc.secure_channel(f"localhost:{made.port}", credentials) as channel:
        # Probes carry no token.
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=5
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_caller_without_the_token_is_refused_before_its_request_comes(
    running, sharded_database
):
    shard = running.shard(sharded_database, 0, 1, token="s3cret")
    never = threading.Event()
    with grpc.insecure_channel(shard.address) as channel:
        call = channel.stream_unary("/retro_jax.retrieval.v1.Shard/Search")
        with pytest.raises(grpc.RpcError) as caught:
            call((b"" for _ in range(1) if never.wait()), timeout=10)
        never.set()
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
