"""Who is let in: those with the key, and no page of another site."""

import asyncio

import pytest

from experiments.serving.guard import LOOPBACK, Guard
from tests import asgi


async def _welcome(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def _status(
    headers: dict, path: str = "/v1/models", key: str | None = None, hosts=LOOPBACK
):
    guard = Guard(_welcome, key=key, hosts=hosts, open_paths={"/health"})
    made = asyncio.run(asgi.exchange(guard, path, method="GET", headers=headers))
    if made.status != 200:
        assert set(made.json()["error"]) == {"message", "type", "param", "code"}
    return made.status


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("Bearer right", 200),
        ("bearer  right ", 200),
        ("Bearer wrong", 401),
        ("Bearer", 401),
        ("right", 401),
        ("Basic right", 401),
        ("Bearer right more", 401),
        ("Bearer r\u00efght", 401),
        ("", 401),
    ],
)
def test_a_key_is_asked_for_where_there_is_one(given, status):
    headers = {"authorization": given} if given else {}
    assert _status(headers, key="right") == status
    assert _status(headers, path="/health", key="right") == 200
    assert _status(headers, key=None) == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8000"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "localhost:8000", "origin": "http://localhost:9000"}, 403),
        ({"host": "localhost:8000", "origin": "https://elsewhere.example"}, 403),
        ({"host": "localhost:8000", "origin": "null"}, 403),
        ({"host": "localhost:8000", "origin": "http://[broken"}, 403),
        ({"host": "turned.example"}, 403),  # whose name leads to this machine
        ({"host": "[broken"}, 403),
        ({"host": ""}, 403),
    ],
)
def test_pages_of_other_sites_are_kept_out(headers, status):
    assert _status(headers) == status
    assert _status(headers, path="/health") == status


def test_a_server_for_others_is_called_by_any_name():
    assert _status({"host": "model.example"}, hosts=None) == 200
