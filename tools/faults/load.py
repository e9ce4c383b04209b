"""Requests to a retrieval service from many clients, and the outcome of each."""

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import grpc
import numpy as np

from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb
from data_pipeline.service.wire.stubs import stub_of

_K = 10


@dataclasses.dataclass(frozen=True)
class Answer:
    """The outcome of a request, and when it came.

    Attributes:
        outcome: whole, partial, or the gRPC code of an error.
        ended_s: on the clock of `time.monotonic`.
        version: of the database, if there was an answer.
    """

    outcome: str
    took_s: float
    ended_s: float
    version: int = -1


class Answers(list[Answer]):
    """The answers of a load."""

    def num(self, *outcomes: str) -> int:
        """Counts the answers with one of these outcomes."""
        return sum(answer.outcome in outcomes for answer in self)

    def errors(self) -> int:
        """Counts the requests without an answer."""
        return len(self) - self.num("whole", "partial")

    def percentile_ms(self, percent: float) -> float:
        """Gives the time that some per cent of the requests did not take, failed ones too."""
        took_s = [answer.took_s for answer in self] or [0.0]
        return round(1000 * float(np.percentile(took_s, percent)), 1)

    def longest_ms(self) -> int:
        """Gives the longest time of a request, failed ones too."""
        return round(1000 * max((answer.took_s for answer in self), default=0.0))


@contextmanager
def connected(port: int) -> Iterator[SimpleNamespace]:
    """Opens a connection of its own to a router."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        yield stub_of(channel, "Retrieval")


def request_of(vectors_QW: np.ndarray) -> pb.SearchRequest:
    """Makes a search for the nearest chunks of some vectors, without their text."""
    return pb.SearchRequest(
        vectors=messages.pack_vectors(vectors_QW), k=_K, without_sources=True
    )


def completeness(response: pb.SearchResponse) -> str:
    """Tells whether all shards answered."""
    return "partial" if response.partial else "whole"


def ask(
    stub,
    request: pb.SearchRequest,
    timeout_s: float,
    judge: Callable[[pb.SearchResponse], str] = completeness,
) -> Answer:
    """Asks once and waits for the answer, whose outcome `judge` tells."""
    start_s, version = time.monotonic(), -1
    try:
        response = stub.Search(request, timeout=timeout_s)
        ended_s = time.monotonic()
        outcome, version = judge(response), response.database.version
    except grpc.RpcError as error:
        ended_s, outcome = time.monotonic(), error.code().name
    return Answer(outcome, ended_s - start_s, ended_s, version)


def under_load(
    port: int,
    request: pb.SearchRequest,
    acts: Sequence[Callable[[], object]],
    *,
    clients: int,
    timeout_s: float,
    seconds: float,
    judge: Callable[[pb.SearchResponse], str] = completeness,
) -> Answers:
    """Runs clients that ask one request after the other, while something is done to the service.

    Args:
        acts: done in turn, at equal intervals of the `seconds`; later if one takes longer.
    """
    until, answers = threading.Event(), Answers()

    def load(_) -> None:
        with connected(port) as stub:
            while not until.is_set():
                answers.append(ask(stub, request, timeout_s, judge))

    with ThreadPoolExecutor(clients) as pool:
        asking = pool.map(load, range(clients))
        began_s = time.monotonic()
        try:
            for number, act in enumerate([*acts, lambda: None], start=1):
                due_s = began_s + seconds * number / (len(acts) + 1)
                time.sleep(max(0.0, due_s - time.monotonic()))
                act()
        finally:
            until.set()
        list(asking)
    return answers


def open_loop(
    port: int,
    request: pb.SearchRequest,
    *,
    rate: float,
    timeout_s: float,
    seconds: float,
) -> Answers:
    """Asks `rate` times a second, whether earlier requests were answered or not."""
    answers, calls = Answers(), []

    def note(start_s: float, done) -> None:
        ended_s, outcome = time.monotonic(), done.code().name
        if done.code() is grpc.StatusCode.OK:
            outcome = completeness(done.result())
        answers.append(Answer(outcome, ended_s - start_s, ended_s))

    with connected(port) as stub:
        began_s = time.monotonic()
        for number in range(max(1, round(rate * seconds))):
            time.sleep(max(0.0, began_s + number / rate - time.monotonic()))
            asked = stub.Search.future(request, timeout=timeout_s)
            asked.add_done_callback(functools.partial(note, time.monotonic()))
            calls.append(asked)
        for asked in calls:
            asked.exception()  # waits
        while len(answers) < len(calls):
            time.sleep(0.001)  # the last callbacks
    return answers
