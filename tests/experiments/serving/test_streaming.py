"""The contract of a stream; each test is a fault that some server had."""

import asyncio
import json
import threading

import pytest

from experiments.serving import streaming
from tests import asgi, served_model
from tests.served_model import until

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
BOTH = [("/v1/completions", {"prompt": "hi"}), ("/v1/chat/completions", CHAT)]
both = pytest.mark.parametrize(("path", "body"), BOTH)
SAYS = served_model.SAYS


def _text(chunks, index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(
        choice.get("text") or choice.get("delta", {}).get("content") or ""
        for choice in choices
        if choice["index"] == index
    )


@both
def test_a_stream_has_no_ids_and_no_types_of_events(stub, path, body):
    lines = stub.lines(path, **body)
    assert {line.partition(" ")[0] for line in lines} == {":", "data:"}


@both
def test_a_stream_begins_with_a_comment_at_once(stub, path, body):
    assert stub.lines(path, **body)[0] == ": "


def test_comments_keep_a_silent_stream_alive(monkeypatch):
    assert streaming.COMMENT_S == 10
    monkeypatch.setattr(streaming, "COMMENT_S", 0.02)
    with served_model.served() as stub:
        stub.model.hold.clear()
        threading.Timer(0.5, stub.model.hold.set).start()
        lines = stub.lines(prompt="hi", max_tokens=1)
    assert lines.count(": ") > 3 and lines[-1] == "data: [DONE]"


@both
def test_choices_are_never_empty_unless_usage_was_asked_for(stub, path, body):
    assert all(chunk["choices"] for chunk in stub.stream(path, **body))


@both
def test_usage_comes_last_and_only_if_it_was_asked_for(stub, path, body):
    assert not any("usage" in chunk for chunk in stub.stream(path, **body))
    options = {"include_usage": True}
    *chunks, last = stub.stream(path, **body, max_tokens=7, stream_options=options)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 7
    assert not any(chunk.get("usage") for chunk in chunks)


@both
@pytest.mark.parametrize("max_tokens", [1, 4, 5, 64])
def test_the_last_chunk_says_why_it_ended_and_no_other_does(
    stub, path, body, max_tokens
):
    *chunks, last = stub.stream(path, **body, max_tokens=max_tokens)
    reasons = [choice["finish_reason"] for each in chunks for choice in each["choices"]]
    assert set(reasons) <= {None}
    long_enough = max_tokens >= len(stub.model.tokens)
    assert last["choices"][0]["finish_reason"] == ("stop" if long_enough else "length")


def test_stop_strings_that_straddle_tokens_leak_no_prefix_and_nothing_after(stub):
    for start in range(1, len(SAYS) - 6, 3):
        stop = SAYS[start : start + 5]
        chunks = stub.stream(prompt="hi", max_tokens=64, stop=["zzz", stop])
        assert _text(chunks) == SAYS[: SAYS.index(stop)]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_what_only_began_like_a_stop_string_is_shown_at_the_end(stub):
    chunks = stub.stream(prompt="hi", max_tokens=64, stop=SAYS[-5:] + "!")
    assert _text(chunks) == SAYS


def test_characters_split_over_tokens_come_whole(stub):
    chunks = stub.stream(prompt="hi", max_tokens=64)
    assert _text(chunks) == SAYS and "\U0001f99c" in SAYS
    for max_tokens in range(1, 40):  # also where the text ends within one
        text = stub.ask(prompt="hi", max_tokens=max_tokens).json()["choices"][0]["text"]
        assert SAYS.startswith(text) and "\ufffd" not in text


@both
def test_several_texts_stream_and_each_ends(stub, path, body):
    chunks = stub.stream(path, **body, n=3, max_tokens=64)
    assert [_text(chunks, index) for index in range(3)] == [SAYS] * 3
    ends = [
        choice["index"]
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["finish_reason"]
    ]
    assert sorted(ends) == [0, 1, 2]


def test_a_stream_says_what_the_whole_answer_says(stub):
    given = {"prompt": ["a", "b"], "max_tokens": 11, "echo": True, "logprobs": 2}
    whole = stub.ask(**given).json()["choices"]
    chunks = stub.stream(**given)
    for choice in whole:
        assert _text(chunks, choice["index"]) == choice["text"]
        for name, values in choice["logprobs"].items():
            streamed = [
                value
                for chunk in chunks
                for each in chunk["choices"]
                if each["index"] == choice["index"]
                for value in each["logprobs"][name]
            ]
            assert streamed == values


@both
def test_a_prompt_that_is_too_long_is_refused_before_the_stream_begins(
    stub, path, body
):
    long = "1" * (served_model.WINDOW + 1)
    given = (
        {"prompt": long}
        if "prompt" in body
        else {"messages": [{"role": "user", "content": long}]}
    )
    answer = stub.ask(path, **given, stream=True)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_an_error_midway_is_an_event_and_then_the_stream_ends(capsys):
    with served_model.served() as stub:
        stub.model.error = RuntimeError("secret of the server")
        *_, error = stub.stream(prompt="hi")
        assert error["error"]["type"] == "server_error"
        assert "secret" not in json.dumps(error) and "secret" in capsys.readouterr().err
        assert stub.ask(prompt="hi").status_code == 200  # the next is not harmed


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_texts(stream):
    with served_model.served() as stub:
        stub.model.hold.clear()
        body = {"prompt": "hi", "max_tokens": 60, "stream": stream, "n": 2}
        asyncio.run(_ask_and_go(stub, body))
        stub.model.hold.set()
        until(lambda: stub.scheduler.counts.cancelled == 2)
        assert stub.model.num_texts == 0 and stub.scheduler.num_under_way == 0
        assert stub.scheduler.counts.steps == 1  # the one that was under way


async def _ask_and_go(stub, body) -> None:
    """Asks, and goes away when the texts are under way."""
    made = asgi.Exchange()
    asked = asgi.exchange(stub.application, "/v1/completions", body, made=made)
    asked = asyncio.ensure_future(asked)
    while stub.scheduler.num_under_way < 2:
        await asyncio.sleep(0.005)
    made.gone.set()
    await asked
