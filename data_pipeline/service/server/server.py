"""The life of a server: flags, listening, health, reflection, draining, exit statuses.

Exit statuses: 0 after SIGTERM, with all answered that was asked before; 2 for a mistake,
said in one line; 130 after Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from data_pipeline.service.server.endpoints import Endpoint
from data_pipeline.service.server.observability import Log, Metrics
from data_pipeline.service.wire import addresses, security
from data_pipeline.service.wire.messages import Limits

INTERRUPTED, USER_ERROR = 130, 2
FOLLOW_S = 2.0
_MB = 1 << 20
# What health is asked of to learn whether the process lives, ready or not.
LIVE = "live"
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Listening:
    """Where and how a server listens.

    Attributes:
        port: 0 takes a free one.
        token, token_file: that callers must send; None lets everybody in.
        drain_s: what is under way at the end may take this long.
        pause_s: between saying NOT_SERVING and refusing, for load balancers to notice.
    """

    host: str = "127.0.0.1"
    port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token: str | None = None
    token_file: Path | None = None
    max_message_bytes: int = 64 * _MB
    metrics_port: int | None = None
    drain_s: float = 30.0
    pause_s: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that all servers share."""
    add_host_argument(parser)
    parser.add_argument("--port", type=port, default=0, help="0 takes a free one")
    parser.add_argument("--tls_cert", type=Path, help="PEM certificate to serve with")
    parser.add_argument("--tls_key", type=Path, help="PEM key of the certificate")
    parser.add_argument("--token_file", type=Path, help="token that callers must send")
    parser.add_argument(
        "--metrics_port", type=port, help="for Prometheus; off if not given"
    )
    parser.add_argument("--max_message_mb", type=positive, default=64)
    limits = Limits()
    parser.add_argument("--max_k", type=positive, default=limits.k)
    parser.add_argument("--max_queries", type=positive, default=limits.queries)
    parser.add_argument("--timeout_s", type=float, default=30.0, help="of any request")
    add_follow_argument(parser)
    parser.add_argument(
        "--drain_s", type=float, default=30.0, help="to finish at SIGTERM"
    )
    parser.add_argument(
        "--until_eof",
        action="store_true",
        help="also end when standard input does: with a supervisor that holds it",
    )
    parser.add_argument(
        "--pause_s", type=float, default=0.0, help="NOT_SERVING before that"
    )


def add_host_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of where a server listens."""
    parser.add_argument(
        "--host",
        type=lambda host: host.strip("[]"),
        default="127.0.0.1",
        help="0.0.0.0 for all networks, :: for those of IPv6 too",
    )


def add_follow_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the flag by which servers follow new versions; all should be given the same."""
    parser.add_argument(
        "--follow_s",
        type=not_negative,
        default=FOLLOW_S,
        help="how often to look for a new version of the database, the same for all "
        "servers; 0: never",
    )


def listening_of(args: argparse.Namespace) -> Listening:
    """Reads `add_arguments`' flags; ValueError for a token file that is none."""
    return Listening(
        host=args.host,
        port=args.port,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
        token=security.read_token(args.token_file),
        token_file=args.token_file,
        max_message_bytes=args.max_message_mb * _MB,
        metrics_port=args.metrics_port,
        drain_s=args.drain_s,
        pause_s=args.pause_s,
    )


def limits_of(args: argparse.Namespace) -> Limits:
    """Reads from `add_arguments`' flags what a request may ask for."""
    return Limits(k=args.max_k, queries=args.max_queries)


def port(text: str) -> int:
    """Reads a port from the command line."""
    if not 0 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"must lie in 0..65535, is {text}")
    return int(text)


def positive(text: str) -> int:
    """Reads a number of at least 1 from the command line."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, is {text}")
    return int(text)


def not_negative(text: str) -> float:
    """Reads seconds from the command line, at least 0."""
    if not 0 <= float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, is {text}")
    return float(text)


def parser_of(module: str, description: str) -> argparse.ArgumentParser:
    """Makes a parser whose errors are one line."""
    return argparse.ArgumentParser(
        prog=f"python -m data_pipeline.service.{module}",
        description=description,
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


class Stoppable(Protocol):
    """A server that runs, or what else has to be ended in order."""

    def announce(self) -> None: ...

    async def stop(self) -> None: ...


class Server:
    """A gRPC server that listens, with health and reflection.

    Attributes:
        port: where it listens.
        closing: what ends after it, the last entered first.
    """

    def __init__(self, server, health_service, listening: Listening, log: Log):
        """Takes a server that `start` has made."""
        self._server, self._health, self._listening = server, health_service, listening
        self._log, self.port = log, listening.port
        self.closing = contextlib.AsyncExitStack()

    @classmethod
    async def start(
        cls,
        listening: Listening,
        endpoints: Sequence[Endpoint],
        metrics: Metrics,
        log: Log,
    ) -> "Server":
        """Begins to listen, with health and reflection.

        Raises:
            ValueError: if a port can't be had or a TLS file is not what it should be.
        """
        credentials = security.server_credentials(listening.tls_cert, listening.tls_key)
        check_port(listening.host, listening.port)
        server = _grpc_server(listening)
        health_service = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
        names = [endpoint.service for endpoint in endpoints]
        reflection.enable_server_reflection(
            [*names, _HEALTH, reflection.SERVICE_NAME], server
        )
        for endpoint in endpoints:
            server.add_generic_rpc_handlers((endpoint.handler(),))
        started = cls(server, health_service, listening, log)
        address = addresses.joined(listening.host, listening.port)
        started.port = (
            server.add_insecure_port(address)
            if credentials is None
            else server.add_secure_port(address, credentials)
        )
        if listening.metrics_port is not None:
            stop = metrics.expose(listening.host, listening.metrics_port)
            started.closing.callback(stop)
        await server.start()
        for name in ("", LIVE, *names):
            await health_service.set(name, health_pb2.HealthCheckResponse.SERVING)
        return started

    async def set_ready(self, service: str, is_ready: bool) -> None:
        """Says by health whether requests of a service can be answered now."""
        status = health_pb2.HealthCheckResponse
        for name in ("", service):
            await self._health.set(
                name, status.SERVING if is_ready else status.NOT_SERVING
            )

    def announce(self) -> None:
        """Says in the log that it serves, and where."""
        where, log = self._listening, self._log
        tls = where.tls_cert is not None
        log("serving", host=where.host, port=self.port, tls=tls, pid=os.getpid())
        if where.host not in _LOOPBACK and not (tls and where.token):
            log("open_to_the_network", tls=tls, token=where.token is not None)
        for path in filter(security.is_open_to_all, (where.tls_key, where.token_file)):
            log("readable_by_all", file=str(path), advice="chmod o-r")

    async def stop(self) -> None:
        """Says NOT_SERVING, takes no more requests and finishes those under way."""
        self._log("draining")
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._listening.pause_s)
        await self._server.stop(self._listening.drain_s)
        await self.closing.aclose()
        self._log("stopped")


def _grpc_server(listening: Listening) -> grpc.aio.Server:
    check = [] if listening.token is None else [security.TokenCheck(listening.token)]
    return grpc.aio.server(
        interceptors=check,
        options=[
            # Else a second server on a port that is taken would get half of its calls.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", listening.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ],
    )


def check_port(host: str, wanted: int) -> None:
    """Raises ValueError if the port can't be listened on; gRPC would say so in many lines."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, wanted, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(
            f"port {wanted} of host {host} can't be had: {error.strerror}"
        ) from error


def run(start: Callable[[], Awaitable[Stoppable]], *, until_eof: bool = False) -> int:
    """Runs a server until a signal ends it, or the end of standard input if asked.

    Returns:
        The exit status.
    """
    if until_eof:
        threading.Thread(target=_end_with_input, daemon=True).start()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors reach callers as statuses
    try:
        return asyncio.run(_until_signalled(start))
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("RETRO_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        return USER_ERROR
    except KeyboardInterrupt:  # before the server could take the signal
        print("\nstopped", file=sys.stderr, flush=True)
        return INTERRUPTED


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


async def _until_signalled(start: Callable[[], Awaitable[Stoppable]]) -> int:
    server = await start()
    # A collection that passes over all that was loaded stops every request for 30 ms.
    gc.collect()
    gc.freeze()
    loop = asyncio.get_running_loop()
    asked: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, asked.put_nowait, signum)
    server.announce()  # from here on it can be asked to end in order
    first = await asked.get()
    loop.add_signal_handler(signal.SIGINT, os._exit, INTERRUPTED)  # can't wait
    if first == signal.SIGINT:
        print("\nstopping", file=sys.stderr, flush=True)
    await server.stop()
    return INTERRUPTED if first == signal.SIGINT else 0
