"""The way from bytes to a method and back: parsing, deadlines, status codes, metrics.

A method is an async function of a request and the seconds it may take. What it raises
becomes a status: ValueError INVALID_ARGUMENT, TimeoutError DEADLINE_EXCEEDED, `Refused` its
own; anything else is a bug, which gRPC logs with its traceback and answers as UNKNOWN.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from data_pipeline.service.server.admission import Admission, Refused
from data_pipeline.service.server.observability import Metrics

_SHOWN_CHARS = 500  # of an error: messages travel in headers, which are small

Method = Callable[[Any, float], Awaitable[Message]]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Serves the methods of one gRPC service.

    Attributes:
        service: full name.
        methods: name -> request class and function.
        longest_s: a request without deadline, or with a later one, gets this.
        never_refused: methods that cost nothing, which `admission` does not count.
    """

    service: str
    methods: Mapping[str, tuple[type[Message], Method]]
    admission: Admission
    metrics: Metrics
    longest_s: float
    never_refused: frozenset[str] = frozenset()

    def handler(self) -> grpc.GenericRpcHandler:
        """Gives the handler that a gRPC server takes."""
        # Requests are parsed here, not by gRPC, which would answer INTERNAL to bad UTF-8.
        return grpc.method_handlers_generic_handler(
            self.service,
            {
                name: grpc.unary_unary_rpc_method_handler(self._serve(name))
                for name in self.methods
            },
        )

    def _serve(self, name: str):
        async def serve(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
            """Answers one call; aborts it, with a status and the reason, if it can't."""
            start_s = time.perf_counter()
            code = grpc.StatusCode.UNKNOWN
            try:
                code, answer = await self._answer(name, data, context.time_remaining())
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            finally:
                elapsed_s = time.perf_counter() - start_s
                self.metrics.requests.labels(name, code.name).inc()
                self.metrics.latency_s.labels(name).observe(elapsed_s)
            if isinstance(answer, str):
                await context.abort(code, answer[:_SHOWN_CHARS])
            return answer

        return serve

    async def _answer(self, name: str, data: bytes, left_s: float | None):
        """Gives a status, with the answer's bytes or, where it is not OK, the reason."""
        timeout_s = self.longest_s if left_s is None else min(left_s, self.longest_s)
        try:
            with self._admitted(name, timeout_s):
                request = self._parse(name, data)
                async with asyncio.timeout(timeout_s):
                    response = await self.methods[name][1](request, timeout_s)
        except Refused as refused:
            return refused.code, str(refused)
        except TimeoutError:
            message = f"no answer within {timeout_s:.3f} s"
            return grpc.StatusCode.DEADLINE_EXCEEDED, message
        except ValueError as error:
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        return grpc.StatusCode.OK, response.SerializeToString()

    def _admitted(self, name: str, timeout_s: float):
        if name in self.never_refused:
            return contextlib.nullcontext()
        return self.admission.place(timeout_s)

    def _parse(self, name: str, data: bytes) -> Message:
        request_class = self.methods[name][0]
        try:
            return request_class.FromString(data)
        except DecodeError as error:
            raise ValueError(
                f"this is no {request_class.DESCRIPTOR.full_name}, or a text in it is "
                "not UTF-8"
            ) from error
