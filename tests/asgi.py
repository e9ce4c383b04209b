"""Requests to an application without a server between, as odd as a test needs them."""

import asyncio
import dataclasses
import json
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass
class Exchange:
    """A request under way, and what has come of it.

    Attributes:
        gone: set when the client goes away.
    """

    status: int = 0
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    gone: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    is_over: bool = False

    def json(self) -> Any:
        """What the answer says."""
        return json.loads(self.body)


async def exchange(
    application: Callable,
    path: str,
    body: bytes | dict = b"",
    method: str = "POST",
    headers: dict[str, str] | None = None,
    made: Exchange | None = None,
) -> Exchange:
    """Asks and waits for the whole answer; gives it, also in `made` as it comes."""
    made = made or Exchange()
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    sent = {"host": "localhost", **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    requests = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive():
        if requests:
            return requests.pop()
        await made.gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.start":
            made.status = message["status"]
            made.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            made.body += message.get("body", b"")
            if not message.get("more_body"):
                made.gone.set()  # the exchange is over

    await application(scope, receive, send)
    made.is_over = True
    return made
