"""Who may ask a server for what, before a request is read.

A page of another site that is open in the user's browser can send requests to servers of the
user's machine. It is known by its `Origin`; one that has turned its own name to this machine
is known by its `Host`.
"""

import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from experiments.serving.refusals import RefusalError
from experiments.serving.streaming import as_json

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """An application behind its checks."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str | None,
        hosts: Collection[str] | None,
        open_paths: Collection[str],
    ):
        """Lets requests through to `app`.

        Args:
            key: what clients must send as `Authorization: Bearer KEY`, if anything.
            hosts: names by which this server may be called; None = all.
            open_paths: what needs no key.
        """
        self._app, self._key, self._hosts = app, key, hosts
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers what is refused, and hands on all else."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope["path"], Headers(scope=scope))
        except RefusalError as error:
            response = as_json(error.body(), error.status, error.headers)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            raise RefusalError(f"this server is not {host!r:.100}", status=403)
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RefusalError("pages of other sites may not ask", status=403)
        if self._key is None or path in self._open_paths:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode(), self._key.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise RefusalError(
                "this server wants a key: Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _name(host: str) -> str:
    """The name of a host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
