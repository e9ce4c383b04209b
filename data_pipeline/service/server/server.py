"""The life of a server: flags, listening, health, reflection, draining, exit statuses.

Exit statuses: 0 after SIGTERM, with all answered that was asked before; 2 for a mistake,
said in one line; 130 after Ctrl-C. A second signal ends it at once, and so does the kernel
(SIGALRM) where draining takes longer than it may, whatever hangs.

Connections on which nothing is asked are closed: those that do not begin to speak HTTP/2
or TLS after `handshake_s`, those without a call after `idle_s`, and all, once their calls
are done, after ten minutes. So whoever opens sockets up to the limit of the system and is
silent shuts others out for no longer than that. gRPC's clients connect again by themselves.
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

from data_pipeline.service.server.admission import InFlight
from data_pipeline.service.server.endpoints import Endpoint, Receiving
from data_pipeline.service.server.observability import Log, Metrics
from data_pipeline.service.wire import addresses, security
from data_pipeline.service.wire.messages import Limits
from data_pipeline.storage.extras import explained
from data_pipeline.storage.printing import printable_line

INTERRUPTED, USER_ERROR = 130, 2
FOLLOW_S = 2.0
_KB, _MB = 1 << 10, 1 << 20
_GRACE_S = 3.0  # for what is left when all calls are answered or cut off
# What has no end of its own ends with its connection: a health check that watches, an answer
# that its caller does not read.
_CONNECTION_AGE_S, _CALLS_OF_OLD_ONES_S = 600.0, 60.0
_STREAMS = 256  # calls under way on a connection; the client keeps the others waiting
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
        max_message_bytes: of a request.
        max_in_flight_bytes: of the requests being received, and as much again of the
            others and their answers; a worker has some copies of an answer.
        handshake_s, idle_s: until a connection that says or asks nothing is closed.
        drain_s: what is under way at the end may take this long.
        pause_s: between saying NOT_SERVING and refusing, for load balancers to notice.
    """

    host: str = "127.0.0.1"
    port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token: str | None = None
    token_file: Path | None = None
    max_message_bytes: int = 8 * _MB
    max_in_flight_bytes: int = 256 * _MB
    metrics_port: int | None = None
    handshake_s: float = 10.0
    idle_s: float = 60.0
    drain_s: float = 30.0
    pause_s: float = 0.0

    @property
    def longest_stop_s(self) -> float:
        """What the end of a server may take."""
        return self.pause_s + self.drain_s + _GRACE_S


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
    add_limit_arguments(parser)
    parser.add_argument("--timeout_s", type=float, default=30.0, help="of any request")
    add_follow_argument(parser)
    add_stop_arguments(parser)
    parser.add_argument(
        "--until_eof",
        action="store_true",
        help="also end when standard input does: with a supervisor that holds it",
    )


def add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of what a request may ask for; all servers should be given the same."""
    limits, listening = Limits(), Listening()
    for name, default, meaning in (
        ("--max_k", limits.k, "passages of a query"),
        ("--max_queries", limits.queries, "of a request"),
        ("--max_text_kb", limits.text_bytes // _KB, "of a query"),
        ("--max_texts_kb", limits.texts_bytes // _KB, "of all queries of a request"),
        ("--max_answer_mb", limits.answer_bytes // _MB, "of passages in an answer"),
        ("--max_message_mb", listening.max_message_bytes // _MB, "of a request"),
        (
            "--max_in_flight_mb",
            listening.max_in_flight_bytes // _MB,
            "of requests being received, and as much of the others and their answers",
        ),
    ):
        parser.add_argument(name, type=positive, default=default, help=meaning)


def add_stop_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of how a server ends."""
    parser.add_argument(
        "--drain_s", type=not_negative, default=30.0, help="to finish at SIGTERM"
    )
    parser.add_argument(
        "--pause_s", type=not_negative, default=0.0, help="NOT_SERVING before that"
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
        max_in_flight_bytes=args.max_in_flight_mb * _MB,
        metrics_port=args.metrics_port,
        drain_s=args.drain_s,
        pause_s=args.pause_s,
    )


def limits_of(args: argparse.Namespace) -> Limits:
    """Reads from `add_arguments`' flags what a request may ask for."""
    message_bytes = args.max_message_mb * _MB
    return Limits(
        k=args.max_k,
        queries=args.max_queries,
        text_bytes=args.max_text_kb * _KB,
        texts_bytes=args.max_texts_kb * _KB,
        # They travel to the shards in one message, with names of documents and numbers.
        vectors_bytes=3 * message_bytes // 4,
        excluded_bytes=message_bytes // 8,
        answer_bytes=args.max_answer_mb * _MB,
    )


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


def parser_of(
    module: str,
    description: str,
    *,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> argparse.ArgumentParser:
    """Makes a parser whose errors are one line; it has the flags of its parents too."""
    return argparse.ArgumentParser(
        prog=f"python -m data_pipeline.service.{module}",
        description=description,
        parents=parents,
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


class Stoppable(Protocol):
    """A server that runs, or what else has to be ended in order."""

    @property
    def longest_stop_s(self) -> float: ...

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
        at_once = max(1, listening.max_in_flight_bytes // listening.max_message_bytes)
        receiving = Receiving(at_once)
        in_flight = InFlight(listening.max_in_flight_bytes, metrics)
        names = [endpoint.service for endpoint in endpoints]
        reflection.enable_server_reflection(
            [*names, _HEALTH, reflection.SERVICE_NAME], server
        )
        for endpoint in endpoints:
            server.add_generic_rpc_handlers((endpoint.handler(receiving, in_flight),))
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

    @property
    def longest_stop_s(self) -> float:
        """What `stop` may take."""
        return self._listening.longest_stop_s

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
            # A body that nobody reads yet must not be asked for in advance.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.max_concurrent_streams", _STREAMS),
            ("grpc.server_handshake_timeout_ms", _ms(listening.handshake_s)),
            ("grpc.max_connection_idle_ms", _ms(listening.idle_s)),
            ("grpc.max_connection_age_ms", _ms(_CONNECTION_AGE_S)),
            ("grpc.max_connection_age_grace_ms", _ms(_CALLS_OF_OLD_ONES_S)),
            # A peer that is gone without a word, with calls under way.
            ("grpc.keepalive_time_ms", _ms(listening.idle_s)),
        ],
    )


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


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
        print(f"error: {printable_line(explained(error))}", file=sys.stderr, flush=True)
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
    # From here on the kernel ends the process, whatever it does just then: at the next
    # signal, for who asks twice can't wait, and when it has taken too long.
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(signum)
        signal.signal(signum, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, server.longest_stop_s)
    if first == signal.SIGINT:
        print("\nstopping", file=sys.stderr, flush=True)
    await server.stop()
    return INTERRUPTED if first == signal.SIGINT else 0
