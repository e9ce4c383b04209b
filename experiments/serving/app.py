"""The server's paths: OpenAI's completions and chats with sources, and the database's."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import fastapi
import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from data_pipeline.text.tokenizer import Tokenizer
from experiments.jobs import chat
from experiments.serving import forms, metrics, shapes, streaming
from experiments.serving.answers import Answer, Limits, Prompt
from experiments.serving.guard import Guard
from experiments.serving.passages import Passages
from experiments.serving.refusals import RefusalError
from experiments.serving.scheduler import Scheduler
from experiments.serving.streaming import as_json

_MAX_BODY_BYTES = 64_000_000
_REFRESH_S = 2.0  # how often the database is asked for a new version
_OWNER = "retro-jax"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """What a server serves.

    Attributes:
        name: the model's.
        passages: None where nothing is retrieved.
        page: files by path, as (media type, content).
        page_headers: what is sent with them.
        hosts: names by which the server may be called; None = all.
    """

    name: str
    tokenizer: Tokenizer
    scheduler: Scheduler
    passages: Passages | None
    limits: Limits
    chunk_len: int
    window_tokens: int
    num_neighbours: int
    page: Mapping[str, tuple[str, bytes]] = dataclasses.field(default_factory=dict)
    page_headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    key: str | None = None
    hosts: frozenset[str] | None = None
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @property
    def end_name(self) -> str:
        """The text that stands for the token that ends a document."""
        names = {number: name for name, number in self.tokenizer.special_ids.items()}
        return names.get(self.tokenizer.eod_id, "</s>")


def application(served: Served) -> ASGIApp:
    """The application; it needs no server to be asked."""
    app = fastapi.FastAPI(
        title=_OWNER, docs_url=None, redoc_url=None, lifespan=_lifespan(served)
    )
    for add in (_add_page, _add_models, _add_database, _add_tokenizer):
        add(app, served)
    for kind in (RefusalError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _refused)
    return Guard(
        app,
        key=served.key,
        hosts=served.hosts,
        open_paths={"/health", *served.page},
    )


def _lifespan(served: Served):
    @contextlib.asynccontextmanager
    async def _lifespan_of_served(app: fastapi.FastAPI):
        follower = asyncio.create_task(_follow(served.passages))
        yield
        follower.cancel()
        await asyncio.to_thread(served.scheduler.close)

    return _lifespan_of_served


async def _follow(passages: Passages | None) -> None:
    """Shows what other processes have changed in the database."""
    while passages is not None:
        await asyncio.sleep(_REFRESH_S)
        # A database that can't be read just now is asked again.
        with contextlib.suppress(OSError, ValueError):
            await asyncio.to_thread(passages.refresh)


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        message = f"{request.method} {request.url.path}: {error.detail}"
        error = RefusalError(message, status=error.status_code, headers=error.headers)
    elif isinstance(error, ClientDisconnect):
        error = RefusalError("the request was broken off")
    refusal = streaming.told(error)
    return as_json(refusal.body(), refusal.status, refusal.headers)


Kind = TypeVar("Kind", bound=forms.Form)


async def _form(request: Request, kind: type[Kind]) -> Kind:
    """The request's body in the form that it should have."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise RefusalError(
                f"the body has more than {_MAX_BODY_BYTES:,} bytes", status=413
            )
    return forms.parse(kind, bytes(body))


def _add_page(app: fastapi.FastAPI, served: Served) -> None:
    def _sends(media_type: str, content: bytes) -> Callable[[], Awaitable[Response]]:
        async def _send() -> Response:
            headers = dict(served.page_headers)
            return Response(content, headers=headers, media_type=media_type)

        return _send

    for path, (media_type, content) in served.page.items():
        app.add_api_route(path, _sends(media_type, content), include_in_schema=False)

    @app.get("/health")
    async def _health() -> Response:
        scheduler, limits = served.scheduler, served.limits
        told = {
            "status": "ok" if scheduler.is_alive else "failed",
            "model": served.name,
            "chunk_len": served.chunk_len,
            "window_tokens": served.window_tokens,
            "num_neighbours": served.num_neighbours,
            "max_neighbours": served.num_neighbours,
            "retrieval": served.passages is not None,
            "chat": served.tokenizer.chat_template is not None,
            "documents_enabled": served.passages is not None
            and served.passages.can_change,
            "database": None,
            "limits": dataclasses.asdict(limits),
            "active": scheduler.num_under_way,
            "queued": scheduler.num_waiting,
        }
        if served.passages is not None:
            told["database"] = await asyncio.to_thread(served.passages.description)
        return as_json(told, 200 if scheduler.is_alive else 503)

    @app.get("/metrics")
    async def _show_metrics() -> Response:
        content, media_type = metrics.text(served.scheduler)
        return Response(content, media_type=media_type)


def _add_models(app: fastapi.FastAPI, served: Served) -> None:
    model = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": _OWNER,
        "max_model_len": served.limits.max_prompt_tokens,
    }

    @app.get("/v1/models")
    async def _models() -> Response:
        return as_json({"object": "list", "data": [model]})

    @app.get("/v1/models/{name:path}")
    async def _one_model(name: str) -> Response:
        _check_model(name, served)
        return as_json(model)

    @app.post("/v1/completions")
    async def _completions(request: Request) -> Response:
        form = await _form(request, forms.Completion)
        _check_model(form.model, served)
        prompts = [
            Prompt(
                tokens=_tokens(prompt, served.tokenizer),
                eod_id=served.tokenizer.eod_id,
                echo=form.echo,
                num_logprobs=form.logprobs,
            )
            for prompt in form.prompts
        ]
        shape = shapes.CompletionShape(
            served.name, has_logprobs=form.logprobs is not None
        )
        return await _answered(request, served, form, prompts, form.max_tokens, shape)

    @app.post("/v1/chat/completions")
    async def _chats(request: Request) -> Response:
        form = await _form(request, forms.Chat)
        _check_model(form.model, served)
        tokens, eod_id = _conversation(form.messages, served.tokenizer)
        prompt = Prompt(
            tokens=tokens,
            eod_id=eod_id,
            num_logprobs=form.top_logprobs if form.logprobs else None,
        )
        given = form.max_completion_tokens, form.max_tokens, served.limits.max_tokens
        most = next(count for count in given if count is not None)
        shape = shapes.ChatShape(served.name, has_logprobs=form.logprobs)
        return await _answered(request, served, form, [prompt], most, shape)


async def _answered(
    request: Request,
    served: Served,
    form: forms.Generation,
    prompts: list[Prompt],
    num_tokens: int,
    shape: shapes.Shape,
) -> Response:
    answer = Answer(
        prompts,
        form,
        num_tokens,
        tokenizer=served.tokenizer,
        passages=served.passages,
        limits=served.limits,
    )
    answer.start(served.scheduler)
    if form.stream:
        with_usage = form.usage_in_stream
        return streaming.streamed(request, answer, shape, with_usage=with_usage)
    return await streaming.whole(request, answer, shape)


def _check_model(name: str, served: Served) -> None:
    if name not in ("", served.name):
        raise RefusalError(
            f"there is no model {name!r:.200}, this is {served.name!r}",
            status=404,
            param="model",
            code="model_not_found",
        )


def _tokens(prompt: str | list[int], tokenizer: Tokenizer) -> np.ndarray:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if not 0 <= min(prompt) <= max(prompt) < tokenizer.vocab_size:
        raise RefusalError(
            f"prompt holds tokens outside 0..{tokenizer.vocab_size - 1}", param="prompt"
        )
    return np.array(prompt, np.int32)


def _conversation(messages: list[forms.Message], tokenizer: Tokenizer):
    if tokenizer.chat_template is None:
        raise RefusalError(
            "this model has no chat template: it continues texts, at /v1/completions",
            param="messages",
            code="no_chat_template",
        )
    said = [{"role": each.role, "content": each.text} for each in messages]
    try:
        return chat.rendered(tokenizer, said)
    except ValueError as error:
        raise RefusalError(str(error), param="messages") from error


def _add_database(app: fastapi.FastAPI, served: Served) -> None:
    def _passages() -> Passages:
        if served.passages is None:
            raise RefusalError("this server has no database", status=404)
        return served.passages

    @app.post("/v1/search")
    async def _search(request: Request) -> Response:
        form = await _form(request, forms.Search)
        farthest = np.inf if form.max_distance is None else form.max_distance
        found = await asyncio.to_thread(
            _passages().search, form.query, form.k, form.rank, farthest
        )
        return as_json({"object": "list", "data": found})

    @app.get("/v1/passages/{chunk_id}")
    async def _passage(chunk_id: str) -> Response:
        if not (chunk_id.isascii() and chunk_id.isdigit() and len(chunk_id) < 19):
            raise RefusalError(f"{chunk_id!r:.100} is no id of a passage", status=404)
        return as_json(await asyncio.to_thread(_passages().passage, int(chunk_id)))

    @app.get("/v1/documents/{document_id:path}")
    async def _document(document_id: str) -> Response:
        return as_json(await asyncio.to_thread(_passages().document, document_id))

    @app.post("/v1/documents")
    async def _add(request: Request) -> Response:
        _passages().check_changes()
        form = await _form(request, forms.Documents)
        documents = [each.model_dump(exclude_none=True) for each in form.documents]
        return as_json(await asyncio.to_thread(_passages().add, documents))

    @app.put("/v1/documents/{document_id:path}")
    async def _replace(request: Request, document_id: str) -> Response:
        _passages().check_changes()
        form = await _form(request, forms.Document)
        if form.id not in (None, document_id):
            raise RefusalError("id differs from that of the path", param="id")
        new = form.model_dump(exclude_none=True) | {"id": document_id}
        return as_json(await asyncio.to_thread(_passages().replace, new))

    @app.delete("/v1/documents/{document_id:path}")
    async def _delete(document_id: str) -> Response:
        return as_json(await asyncio.to_thread(_passages().delete, document_id))


def _add_tokenizer(app: fastapi.FastAPI, served: Served) -> None:
    """Adds what vLLM has beside OpenAI's paths, by which lm_eval tokenizes."""
    tokenizer = served.tokenizer

    @app.post("/tokenize")
    async def _tokenize(request: Request) -> Response:
        form = await _form(request, forms.Tokenize)
        if form.messages is not None:
            tokens, _ = _conversation(form.messages, tokenizer)
        elif form.prompt == served.end_name:
            tokens = np.array([tokenizer.eod_id])
        else:
            tokens = tokenizer.encode(form.prompt or "")
        return as_json(
            {
                "count": len(tokens),
                "max_model_len": served.limits.max_prompt_tokens,
                "tokens": tokens.tolist(),
                "token_strs": None,
            }
        )

    @app.post("/detokenize")
    async def _detokenize(request: Request) -> Response:
        form = await _form(request, forms.Detokenize)
        if form.tokens:
            _tokens(form.tokens, tokenizer)
        return as_json({"prompt": tokenizer.decode(form.tokens)})

    @app.get("/tokenizer_info")
    async def _tokenizer_info() -> Response:
        return as_json(
            {
                "tokenizer_class": _OWNER,
                "eos_token": served.end_name,
                "bos_token": None,
                "model_max_length": served.limits.max_prompt_tokens,
                "vocab_size": tokenizer.vocab_size,
                "chat_template": tokenizer.chat_template,
            }
        )
