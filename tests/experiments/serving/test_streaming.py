"""The contract of streams; most of it is what clients of other servers stumbled over."""

import asyncio
import json

import pytest

from experiments.serving import streaming
from tests import asgi, served_model

# What the scripted model says: 16 tokens of it, and all.
SAID_16 = " the capital of number 7 isn't it: caf\u00e9 "
LONG = {"prompt": "a", "max_tokens": 60, "temperature": 0}


def _text(chunks, index: int = 0) -> str:
    return "".join(
        choice["text"]
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def _finishes(chunks, index: int = 0) -> list:
    return [
        choice["finish_reason"]
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    ]


def test_no_event_has_an_id_or_a_type_of_its_own(stub):
    for line in stub.lines(**LONG):
        assert line.startswith(("data: ", ":")), line


def test_the_first_bytes_come_at_once_and_others_while_nothing_is_said(monkeypatch):
    monkeypatch.setattr(streaming, "COMMENT_S", 0.02)

    async def ask(stub):
        made = asgi.Exchange()
        body = {**LONG, "stream": True}
        asked = asyncio.ensure_future(
            asgi.exchange(stub.application, "/v1/completions", body, made=made)
        )
        while made.body.count(b": \n\n") < 3:
            await asyncio.sleep(0.005)
        assert b"data" not in made.body and made.status == 200
        stub.model.hold.set()
        await asked
        assert made.body.endswith(b"data: [DONE]\n\n")

    with served_model.served() as stub:
        stub.model.hold.clear()
        asyncio.run(ask(stub))


def test_choices_are_never_empty_and_usage_is_not_told_unless_asked_for(stub):
    for chunk in stub.stream(**LONG):
        assert len(chunk["choices"]) == 1 and "usage" not in chunk


def test_usage_comes_last_if_asked_for(stub):
    *others, last = stub.stream(**LONG, stream_options={"include_usage": True})
    assert last["choices"] == [] and last["usage"]["total_tokens"] == (
        last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]
    )
    assert all("usage" not in chunk and chunk["choices"] for chunk in others)


@pytest.mark.parametrize(("most", "finish"), [(6, "length"), (60, "stop")])
def test_the_last_chunk_and_no_other_has_a_finish_reason(stub, most, finish):
    chunks = stub.stream(**{**LONG, "max_tokens": most})
    *before, last = _finishes(chunks)
    assert before and set(before) == {None} and last == finish


def test_a_stream_says_what_the_whole_answer_says(stub):
    whole = stub.ask(**LONG).json()
    (choice,) = whole["choices"]
    chunks = stub.stream(**LONG)
    assert _text(chunks) == choice["text"] == served_model.SAYS
    assert choice["finish_reason"] == "stop" and whole["object"] == "text_completion"
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        ("7 isn't it: caf", " the capital of number "),  # over three steps
        (["zzz", "ber 7"], " the capital of num"),
        ("caf\u00e9", " the capital of number 7 isn't it: "),
        ("t", " "),  # in the middle of the first token
        (
            "so on.",
            " the capital of number 7 isn't it: caf\u00e9 \U0001f99c 49, and so on, and ",
        ),
        ("never", served_model.SAYS),
        ("on.!", served_model.SAYS),  # its beginning ends the text
    ],
)
def test_neither_a_stop_string_nor_its_beginning_nor_what_follows_is_shown(
    stub, stop, said
):
    chunks = stub.stream(**LONG, stop=stop)
    shown = ""
    for chunk in chunks:
        shown += chunk["choices"][0]["text"]
        assert said.startswith(shown)
    assert shown == said and _finishes(chunks)[-1] == "stop"
    assert stub.ask(**LONG, stop=stop).json()["choices"][0]["text"] == said


def test_a_character_split_over_tokens_is_never_broken(stub):
    """The parrot is four tokens, and some limit falls between them."""
    for most in range(1, 46):
        body = {**LONG, "max_tokens": most}
        chunks = stub.stream(**body)
        assert "\ufffd" not in _text(chunks)
        assert served_model.SAYS.startswith(_text(chunks))
        assert all("\ufffd" not in chunk["choices"][0]["text"] for chunk in chunks)


def test_several_choices_stream_side_by_side_and_each_ends(stub):
    chunks = stub.stream(**LONG, n=3)
    for index in range(3):
        assert _text(chunks, index) == served_model.SAYS
        assert _finishes(chunks, index)[-1] == "stop"
        assert _finishes(chunks, index).count(None) == len(_finishes(chunks, index)) - 1


def test_a_prompt_that_is_too_long_is_refused_before_the_stream(stub):
    body = {"prompt": [5] * (served_model.WINDOW + 1), "stream": True}
    answer = stub.ask(**body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.headers["content-type"] == "application/json"


def test_an_error_of_the_model_ends_the_stream_and_not_the_server(stub, capsys):
    stub.model.error = RuntimeError("secret of the machine")
    lines = stub.lines(**LONG)
    assert lines[-1] == "data: [DONE]"
    error = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert error["type"] == "server_error" and "secret" not in json.dumps(error)
    assert "secret of the machine" in capsys.readouterr().err
    assert _text(stub.stream(**LONG)) == served_model.SAYS


def test_an_error_of_the_model_is_no_trace_of_it(stub, capsys):
    stub.model.error = RuntimeError("secret of the machine")
    answer = stub.ask(**LONG)
    assert answer.status_code == 500 and "secret" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"
    capsys.readouterr()


@pytest.mark.parametrize("stream", [True, False])
def test_nothing_is_generated_for_a_client_that_has_gone(stream):
    async def leave(stub):
        made = asgi.Exchange()
        body = {**LONG, "stream": stream, "n": 2}
        asked = asyncio.ensure_future(
            asgi.exchange(stub.application, "/v1/completions", body, made=made)
        )
        while len(stub.model.joined) < 2:
            await asyncio.sleep(0.005)
        made.gone.set()
        await asyncio.wait_for(asked, 10)
        stub.model.hold.set()
        while stub.scheduler.num_under_way:
            await asyncio.sleep(0.005)
        assert b"finish_reason" not in made.body or stream

    with served_model.served() as stub:
        stub.model.hold.clear()
        asyncio.run(leave(stub))
        assert stub.model.num_texts == 0 and len(stub.model.left) == 2
        assert stub.scheduler.counts.cancelled == 2
        assert stub.scheduler.counts.generated_tokens <= 2 * served_model.CHUNK_LEN


def test_a_client_that_goes_while_it_waits_is_dropped_from_the_queue():
    async def leave(stub):
        first, second = asgi.Exchange(), asgi.Exchange()
        answers = [
            asyncio.ensure_future(
                asgi.exchange(stub.application, "/v1/completions", LONG, made=made)
            )
            for made in (first, second)
        ]
        while not (stub.model.joined and stub.scheduler.num_waiting):
            await asyncio.sleep(0.005)
        second.gone.set()
        await answers[1]
        stub.model.hold.set()
        await answers[0]
        assert first.status == 200 and second.status != 200

    with served_model.served(most_texts=1) as stub:
        stub.model.hold.clear()
        asyncio.run(leave(stub))
        assert len(stub.model.joined) == 1
