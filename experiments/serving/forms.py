"""The forms of requests: their fields, and what is refused of them.

A field that is null is one that was not given. Numbers are no strings and strings no
numbers. Fields that are not known are passed over, as clients send many; those that would
change the text and can't be obeyed are refused.
"""

import collections
from typing import Annotated, Any, TypeVar

import pydantic
import pydantic_core
from pydantic import Field

from experiments.serving.refusals import RefusalError

_MAX_STOPS = 16
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Share = Annotated[float, Field(ge=0, le=1)]


class Form(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="ignore", frozen=True)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class StreamOptions(Form):
    """What a stream holds besides text."""

    include_usage: bool = False


class Generation(Form):
    """What completions and chats have in common."""

    model: str = ""
    n: Annotated[int, Field(ge=1, le=128)] = 1
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Share = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
    min_p: Share = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[str, float] = {}
    seed: Seed | None = None
    stop: str | list[str] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    user: str = ""
    # What other servers do not have.
    retrieval: bool = True
    num_neighbours: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    effects: bool = False

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end a text."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def usage_in_stream(self) -> bool:
        """Whether a stream ends with what was used."""
        return self.stream_options is not None and self.stream_options.include_usage

    @pydantic.model_validator(mode="after")
    def _can_be_obeyed(self):
        if self.stream_options is not None and not self.stream:
            raise _Wrong("stream_options", "is for stream: true")
        if self.logit_bias:
            raise _Wrong("logit_bias", "is not supported")
        if "" in self.stops:
            raise _Wrong("stop", "holds an empty text")
        if len(self.stops) > _MAX_STOPS:
            raise _Wrong("stop", f"holds more than {_MAX_STOPS} texts")
        return self


class Completion(Generation):
    """The body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: str = ""

    @pydantic.model_validator(mode="after")
    def _is_a_completion(self):
        if self.best_of is not None and self.best_of != self.n:
            raise _Wrong("best_of", "is not supported unless it equals n")
        if self.suffix:
            raise _Wrong("suffix", "is not supported: text is only continued")
        if not self.prompt or not all(prompt or prompt == 0 for prompt in self.prompt):
            raise _Wrong("prompt", "is empty: give at least one token to continue")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """All prompts, each a text or its tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [list(self.prompt)]
        return self.prompt


class TextPart(Form):
    """A part of a message; only text can be read."""

    type: str
    text: str = ""


class Message(Form):
    """What somebody said in a conversation."""

    role: str
    content: str | list[TextPart] = ""

    @property
    def text(self) -> str:
        """All that was said."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class Chat(Generation):
    """The body of /v1/chat/completions."""

    messages: list[Message]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=5)] = 0
    tools: list[Any] = []
    response_format: dict[str, Any] = {}

    @pydantic.model_validator(mode="after")
    def _is_a_chat(self):
        if not self.messages:
            raise _Wrong("messages", "is empty: give at least one message")
        for message in self.messages:
            parts = message.content if isinstance(message.content, list) else []
            if any(part.type != "text" for part in parts):
                raise _Wrong("messages", "holds parts that are no text")
            if message.role not in ("system", "user", "assistant", "developer"):
                raise _Wrong("messages", f"has the role {message.role!r:.40}")
        if self.tools:
            raise _Wrong("tools", "are not supported")
        if self.response_format.get("type", "text") != "text":
            raise _Wrong("response_format", "must be text")
        if self.top_logprobs and not self.logprobs:
            raise _Wrong("top_logprobs", "is for logprobs: true")
        return self


class Search(Form):
    """The body of /v1/search."""

    query: str
    k: Annotated[int, Field(ge=1, le=1000)] = 5
    rank: str = "dense"
    max_distance: Annotated[float, Field(ge=0)] | None = None


class Document(Form):
    """A document as it is added; without an id it gets one that is made from its text."""

    text: str
    id: str | None = None
    title: str = ""
    uri: str = ""
    licence: str = ""


class Documents(Form):
    """The body of POST /v1/documents."""

    documents: list[Document]


class Tokenize(Form):
    """The body of /tokenize: a text, or the messages of a conversation."""

    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = False
    return_token_strs: bool = False

    @pydantic.model_validator(mode="after")
    def _has_one_of_both(self):
        if (self.prompt is None) == (self.messages is None):
            raise _Wrong("prompt", "or messages must be given, one of them")
        return self


class Detokenize(Form):
    """The body of /detokenize."""

    tokens: list[Annotated[int, Field(ge=0)]]


class _Wrong(pydantic_core.PydanticCustomError):
    """A field that is wrong for what other fields say."""

    def __new__(cls, field: str, problem: str):
        text = problem.replace("{", "(").replace("}", ")")
        return super().__new__(cls, field, text)


Kind = TypeVar("Kind", bound=Form)


def parse(kind: type[Kind], body: bytes) -> Kind:
    """The request in a body.

    Raises:
        RefusalError: for what is no JSON, and naming the first field that is wrong.
    """
    try:
        given = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RefusalError(
            f"the body is no JSON: {error}", code="invalid_json"
        ) from None
    if not isinstance(given, dict):
        raise RefusalError("the body must be a JSON object", code="invalid_json")
    try:
        return kind.model_validate(given)
    except pydantic.ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: pydantic.ValidationError) -> RefusalError:
    """The first field that is wrong, and what it must be."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for each in error.errors(include_url=False, include_context=False):
        place, problem = each["loc"], each["msg"]
        if not place:  # a rule between fields is named by its type
            found[each["type"]].append(problem)
        else:
            found[str(place[0])].append(problem[:1].lower() + problem[1:])
    name, problems = next(iter(found.items()))
    said = " or ".join(dict.fromkeys(problems))
    missing = said == "field required"
    return RefusalError(
        f"{name} is missing" if missing else f"{name}: {said}",
        param=name,
        code="missing_required_parameter" if missing else "invalid_value",
    )
