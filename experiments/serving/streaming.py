"""Answers on their way: as a stream of events or whole, until they end or nobody listens.

A stream has neither ids nor types of events: clients parse each event's data as an object
of the kind they asked for.
"""

import asyncio
import contextlib
import sys
import traceback
from collections.abc import AsyncIterator

import pydantic_core
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from experiments.serving.answers import Answer
from experiments.serving.refusals import RefusalError
from experiments.serving.shapes import Shape

COMMENT_S = 10.0  # proxies give up on a connection that is silent for 30 s
_COMMENT, _DONE = b": \n\n", b"data: [DONE]\n\n"
_CLIENT_IS_GONE = 499  # as nginx calls it; nobody reads it


def as_json(value: object, status: int = 200, headers: dict | None = None) -> Response:
    """An answer in JSON."""
    content = pydantic_core.to_json(value)
    return Response(content, status, headers, media_type="application/json")


def told(error: Exception) -> RefusalError:
    """What a client is told of an error; one of ours is printed here and not told."""
    if isinstance(error, RefusalError):
        return error
    traceback.print_exception(error, file=sys.stderr)
    return RefusalError("the server failed on this request", status=500)


def streamed(
    request: Request, answer: Answer, shape: Shape, *, with_usage: bool
) -> Response:
    """The answer as server-sent events."""
    return StreamingResponse(
        _events(request, answer, shape, with_usage),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def whole(request: Request, answer: Answer, shape: Shape) -> Response:
    """The answer in one piece."""
    collected = asyncio.ensure_future(_collected(answer))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({collected, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not collected.done():
            return Response(status_code=_CLIENT_IS_GONE)
        return as_json(shape.whole(answer, collected.result()))
    finally:
        await _end(answer, collected, gone)


async def _collected(answer: Answer) -> list[list]:
    texts: list[list] = [[] for _ in range(answer.num_texts)]
    async for piece in answer.pieces():
        texts[piece.index].append(piece)
    return texts


async def _disconnected(request: Request) -> None:
    """Returns when nobody listens any more: Starlette does not tell by itself."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    request: Request, answer: Answer, shape: Shape, with_usage: bool
) -> AsyncIterator[bytes]:
    yield _COMMENT  # clients and proxies see at once that there is an answer
    pieces = answer.pieces()
    waited = asyncio.ensure_future(anext(pieces))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        for opening in shape.opening(answer):
            yield _event(opening)
        while True:
            done, _ = await asyncio.wait(
                {waited, gone}, timeout=COMMENT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if waited in done:
                yield _event(shape.chunk(answer, waited.result()))
                waited = asyncio.ensure_future(anext(pieces))
            elif gone in done:
                return
            else:
                yield _COMMENT
    except StopAsyncIteration:
        if with_usage:
            yield _event(shape.usage(answer))
        yield _DONE
    except Exception as error:  # noqa: BLE001  the answer has begun: it ends in order
        yield _event(told(error).body())
        yield _DONE
    finally:
        await _end(answer, waited, gone)


async def _end(answer: Answer, *futures: asyncio.Future) -> None:
    """Lets go of an answer; what has ended is not touched by it."""
    answer.cancel()
    for future in futures:
        future.cancel()
    for future in futures:
        with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
            await future


def _event(value: dict) -> bytes:
    return b"data: " + pydantic_core.to_json(value) + b"\n\n"
