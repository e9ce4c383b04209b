"""The metrics and the log of a server: Prometheus, and JSON lines on standard error."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import prometheus_client

_SCRAPE_S = 5.0  # for the request of a scrape to arrive
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Log:
    """One JSON object a line: time, server, event and the event's own fields."""

    def __init__(self, server: str, write: Callable[[str], object] | None = None):
        """`server` names who speaks; `write` takes lines, standard error if not given."""
        self._server, self._write = server, write or sys.stderr.write
        self._lock = threading.Lock()

    def __call__(self, event: str, **fields) -> None:
        """Writes an event."""
        line = {"time_s": round(time.time(), 3), "server": self._server, "event": event}
        with self._lock:
            self._write(json.dumps(line | fields) + "\n")


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        """Makes all counters, at zero."""
        self.registry = prometheus_client.CollectorRegistry()
        self.requests = self._counter(
            "requests", "Requests by method and gRPC code", "method", "code"
        )
        self.latency_s = prometheus_client.Histogram(
            "retro_request_seconds",
            "From request to answer",
            ["method"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.in_flight = self._gauge(
            "in_flight", "Requests taken and not answered", "kind"
        )
        self.limit = self._gauge(
            "in_flight_limit", "Requests that would be taken", "kind"
        )
        self.queue_length = self._gauge("queue_length", "Requests that wait", "kind")
        self.bytes = self._gauge("in_flight_bytes", "Of requests and their answers")
        self.hedges = self._counter("hedges", "Second requests to a slow shard")
        self.retries = self._counter("retries", "Requests sent to another replica")
        self.partials = self._counter("partials", "Answers that lack a shard")
        self.missing = self._counter("missing_shards", "A shard was missing", "shard")
        self.left_alone = self._gauge(
            "replica_left_alone", "1: not asked, for it has failed", "replica"
        )
        self.version = self._gauge("version", "Of the database, as served")
        self.version_failures = self._counter(
            "version_failures", "Attempts to open a new version that failed"
        )

    def _counter(self, name: str, what: str, *labels: str) -> prometheus_client.Counter:
        return prometheus_client.Counter(
            f"retro_{name}", what, labels, registry=self.registry
        )

    def _gauge(self, name: str, what: str, *labels: str) -> prometheus_client.Gauge:
        return prometheus_client.Gauge(
            f"retro_{name}", what, labels, registry=self.registry
        )

    def value(self, name: str, **labels: str) -> float:
        """A metric by its full name, as a scrape would show it; 0 if not there yet."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def expose(self, host: str, port: int) -> Callable[[], None]:
        """Answers scrapes at http://host:port/metrics; gives a function that ends that.

        Raises:
            ValueError: if the port can't be had.
        """
        try:
            server, thread = prometheus_client.start_http_server(
                port, host, self.registry
            )
            server.RequestHandlerClass = _with_timeout(server.RequestHandlerClass)
        except OSError as error:
            raise ValueError(
                f"metrics_port {port} of {host} can't be had: {error.strerror}"
            ) from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop


def _with_timeout(handler: Any) -> Any:
    """A handler whose connection ends if its request does not come: each has a thread."""

    class Handler(handler):
        timeout = _SCRAPE_S

        def handle(self) -> None:
            with contextlib.suppress(TimeoutError):
                super().handle()

    return Handler
