"""TLS and bearer tokens, of servers and of those who call them."""

import hmac
import ssl
import stat
from pathlib import Path

import grpc

_HEALTH = "/grpc.health.v1.Health/"


def read_token(path: Path | None) -> str | None:
    """The token in a file, without white space around it; None if there is no file named.

    Raises:
        ValueError: if there is no token in the file that a header can carry.
    """
    if path is None:
        return None
    token = _read(path, "token_file").decode("ascii", "replace").strip()
    if not token or not token.isascii() or not token.isprintable():
        raise ValueError(f"token_file {path} must hold one line of printable ASCII")
    return token


def is_open_to_all(path: Path | None) -> bool:
    """Whether a secret lies in a file that every user of the machine can read."""
    if path is None:
        return False
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)


def metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """The headers that let a call in."""
    return () if token is None else (("authorization", f"Bearer {token}"),)


def server_credentials(
    cert: Path | None, key: Path | None
) -> grpc.ServerCredentials | None:
    """Credentials of a server; None without TLS.

    Raises:
        ValueError: if one file is missing, or they are no certificate and its key.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ValueError("tls_cert and tls_key go together: give both or neither")
    pair = (_read(key, "tls_key"), _read(cert, "tls_cert"))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except ssl.SSLError as error:
        raise ValueError(
            f"tls_cert {cert} and tls_key {key} are no PEM certificate and its key"
        ) from error
    return grpc.ssl_server_credentials([pair])


def channel_credentials(ca: Path | None) -> grpc.ChannelCredentials | None:
    """Credentials to call servers whose certificate `ca` vouches for; None without TLS."""
    if ca is None:
        return None
    authority = _read(ca, "tls_ca")
    try:
        ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise ValueError(f"tls_ca {ca} is no PEM certificate") from error
    return grpc.ssl_channel_credentials(authority)


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{flag} {path} can't be read: {error.strerror}") from error


class TokenCheck:
    """Lets calls in that carry the token; health checks, which can't, always.

    Kubernetes' probes send no headers.
    """

    def __init__(self, token: str):
        """Takes the token that callers must have."""
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(self, continuation, details):
        """Gives the handler of a call: the method's, or one that refuses."""
        if details.method.startswith(_HEALTH):
            return await continuation(details)
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        given = given if isinstance(given, bytes) else given.encode()
        if hmac.compare_digest(given, self._expected):
            return await continuation(details)
        # As a stream: the request is not waited for, nor taken from the connection.
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(_, context: grpc.aio.ServicerContext) -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "this server wants its token: send 'authorization: Bearer TOKEN'",
    )


grpc.aio.ServerInterceptor.register(TokenCheck)
