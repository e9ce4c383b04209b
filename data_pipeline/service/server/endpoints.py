"""The way from bytes to a method and back: receiving, parsing, deadlines, status, metrics.

A method is an async function of a request and the `Call` it came with. What it raises
becomes a status: ValueError INVALID_ARGUMENT, TimeoutError DEADLINE_EXCEEDED, `Refused` its
own; anything else is a bug, which gRPC logs with its traceback and answers as UNKNOWN.

A request's body is asked for when it is to be read and not before. What a caller sends
until then waits on its side, but for the window of HTTP/2 (64 KB a connection): so callers
without the token, and bodies beyond those that are received at once, cost no memory.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from data_pipeline.service.server.admission import Admission, InFlight, Refused
from data_pipeline.service.server.observability import Metrics

_SHOWN_CHARS = 500  # of an error: messages travel in headers, which are small
# For a body to arrive whole, of those that are received at once: the next one waits for it.
_RECEIVE_S = 10.0


class Receiving:
    """Receives so many bodies at once and no more; the others wait, in order."""

    def __init__(self, at_once: int, *, timeout_s: float = _RECEIVE_S):
        """`timeout_s` is what each has to arrive in."""
        self._places, self._timeout_s = asyncio.Semaphore(at_once), timeout_s

    async def read(self, context, timeout_s: float) -> bytes:
        """Gives the body of a call; TimeoutError if it does not come in time.

        Raises:
            ValueError: if there is none.
        """
        async with asyncio.timeout(timeout_s), self._places:
            async with asyncio.timeout(self._timeout_s):
                data = await context.read()
        if data is grpc.aio.EOF:
            raise ValueError("a call without a request")
        return data


@dataclasses.dataclass
class Call:
    """What a method is told of its call, and the bytes that it has in hand.

    Attributes:
        timeout_s: it may take.
    """

    timeout_s: float
    in_flight: InFlight
    size_bytes: int = 0

    def reserve(self, size_bytes: int) -> None:
        """Takes so many bytes in hand until the answer is sent.

        Raises:
            Refused: RESOURCE_EXHAUSTED, if the server can't take them.
        """
        self.in_flight.take(size_bytes)
        self.size_bytes += size_bytes

    def release(self) -> None:
        """Gives all back."""
        self.in_flight.give_back(self.size_bytes)
        self.size_bytes = 0

    def release_when_sent(self, context) -> None:
        """Gives all back when the caller has read the answer, or is gone."""
        context.add_done_callback(lambda _: self.release())


Method = Callable[[Any, Call], Awaitable[Message]]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Serves the methods of one gRPC service.

    Attributes:
        service: full name.
        methods: name -> request class and function.
        share_of: the places that a request takes one of; None if it costs nothing.
        longest_s: a request without deadline, or with a later one, gets this.
    """

    service: str
    methods: Mapping[str, tuple[type[Message], Method]]
    share_of: Callable[[Message], Admission | None]
    metrics: Metrics
    longest_s: float

    def handler(
        self, receiving: Receiving, in_flight: InFlight
    ) -> grpc.GenericRpcHandler:
        """Gives the handler that a gRPC server takes."""
        # For callers each method is unary. Taken as a stream its request is read here, when
        # there is room, and parsed here: gRPC would answer INTERNAL to bad UTF-8.
        return grpc.method_handlers_generic_handler(
            self.service,
            {
                name: grpc.stream_unary_rpc_method_handler(
                    self._serve(name, receiving, in_flight)
                )
                for name in self.methods
            },
        )

    def _serve(self, name: str, receiving: Receiving, in_flight: InFlight):
        async def serve(_, context: grpc.aio.ServicerContext) -> bytes | str:
            """Answers one call; aborts it, with a status and the reason, if it can't."""
            start_s = time.perf_counter()
            left_s, code = context.time_remaining(), grpc.StatusCode.UNKNOWN
            timeout_s = (
                self.longest_s if left_s is None else min(left_s, self.longest_s)
            )
            call = Call(timeout_s, in_flight)
            answer: bytes | str = ""
            try:
                code, answer = await self._answer(name, receiving, context, call)
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            finally:
                elapsed_s = time.perf_counter() - start_s
                self.metrics.requests.labels(name, code.name).inc()
                self.metrics.latency_s.labels(name).observe(elapsed_s)
                if isinstance(answer, str):
                    call.release()
                else:
                    call.release_when_sent(context)
            if isinstance(answer, str):
                await context.abort(code, answer[:_SHOWN_CHARS])
            return answer

        return serve

    async def _answer(
        self,
        name: str,
        receiving: Receiving,
        context,
        call: Call,
    ) -> tuple[grpc.StatusCode, bytes | str]:
        """Gives a status, with the answer's bytes or, where it is not OK, the reason."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + call.timeout_s
        try:
            data = await receiving.read(context, call.timeout_s)
            call.timeout_s = ends_s - loop.time()
            call.reserve(len(data))
            request = self._parse(name, data)
            with self._admitted(request, call.timeout_s):
                async with asyncio.timeout(call.timeout_s):
                    response = await self.methods[name][1](request, call)
            answer = response.SerializeToString()
            call.reserve(max(0, len(answer) - call.size_bytes))
        except Refused as refused:
            return refused.code, str(refused)
        except TimeoutError:
            message = f"no answer within {call.timeout_s:.3f} s"
            return grpc.StatusCode.DEADLINE_EXCEEDED, message
        except ValueError as error:
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        return grpc.StatusCode.OK, answer

    def _admitted(self, request: Message, timeout_s: float):
        share = self.share_of(request)
        return contextlib.nullcontext() if share is None else share.place(timeout_s)

    def _parse(self, name: str, data: bytes) -> Message:
        request_class = self.methods[name][0]
        try:
            return request_class.FromString(data)
        except DecodeError as error:
            raise ValueError(
                f"this is no {request_class.DESCRIPTOR.full_name}, or a text in it is "
                "not UTF-8"
            ) from error
