"""Addresses of servers: which are some, and which are never asked through a proxy."""

import pytest

from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.wire import addresses

_PROXY = "http://127.0.0.1:9"  # nobody is there


@pytest.mark.parametrize(
    "address", ["a:1", "[::1]:50050", "127.0.0.1:65535", "[fe80::1%eth0]:5", "unix:/a"]
)
def test_addresses(address):
    assert addresses.checked(address) == address


@pytest.mark.parametrize(
    "address",
    [
        *["a", "a:", ":1", "a:0", "a:65536", "a:x", "a:-1", "a:\u0663", "", "unix:"],
        *[
            "::1:50050",
            "[::1]",
            "[]:1",
            "[a]:1",
            "a b:1",
            "user@a:1",
            "a/b:1",
            "[::1:1",
        ],
    ],
)
def test_what_is_no_address_is_told_the_form(address):
    with pytest.raises(ValueError, match=r"no address of a server: host:port.*\[::1\]"):
        addresses.checked(address)


@pytest.mark.parametrize(
    ("address", "is_here"),
    [
        ("localhost:1", True),
        ("LocalHost:1", True),
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("[0:0:0:0:0:0:0:1]:1", True),
        ("unix:/run/a", True),
        ("10.0.0.1:1", False),
        ("[2001:db8::1]:1", False),
        ("localhost.example.com:1", False),
        ("retro-router:1", False),
    ],
)
def test_this_machine_is_never_asked_through_a_proxy(address, is_here):
    options = dict(addresses.channel_options(address))
    assert options["grpc.enable_http_proxy"] == (not is_here)


@pytest.fixture
def proxy(monkeypatch):
    for name in ("grpc_proxy", "https_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", _PROXY)


@pytest.mark.usefixtures("proxy")
def test_a_service_of_this_machine_answers_in_spite_of_a_proxy(service, client):
    expected = client.search(["the same again"], 2)
    for host in ("127.0.0.1", "localhost"):
        with RetrievalClient(f"grpc://{host}:{service[1].port}") as found:
            assert found.search(["the same again"], 2) == expected


@pytest.mark.usefixtures("proxy")
def test_elsewhere_the_proxy_is_named(monkeypatch):
    with (
        RetrievalClient("grpc://192.0.2.1:50050", timeout_s=5) as client,
        pytest.raises(
            ConnectionError, match=f"http_proxy={_PROXY} is on the way: unset"
        ),
    ):
        client.describe()
    monkeypatch.setenv("no_proxy", "example.com, .0.2.1")
    said = addresses.explain("failed to connect to x", "192.0.2.1:50050")
    assert "http_proxy" not in said


def test_a_host_without_a_number_is_one_line():
    with (
        RetrievalClient("grpc://no.such.host.invalid:1", timeout_s=5) as client,
        pytest.raises(
            ConnectionError, match="no host has the name no.such.host.invalid"
        ),
    ):
        client.describe()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://a:1", r"grpc://host:port.*it speaks gRPC, not http"),
        ("https://a:1", r"grpcs://host:port.*not https"),
        ("grpc://::1:50050", r"an IPv6 address in brackets as \[::1\]:50050"),
        ("grpc://a:1/path", "is no address of a retrieval service"),
    ],
)
def test_other_forms_are_told_what_is_wrong(address, message):
    with pytest.raises(ValueError, match=message):
        RetrievalClient(address)


def test_all_servers_take_ipv6(running, sharded_database):
    shard = running.shard(sharded_database, 0, 1, host="::1", metrics_port=0)
    router = running.router(sharded_database, f"[::1]:{shard.port}", host="::1")
    with RetrievalClient(f"grpc://[::1]:{router.port}") as client:
        expected = sharded_database.search(["the same again"], 2)
        assert client.search(["the same again"], 2) == expected
