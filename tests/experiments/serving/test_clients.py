"""Clients that people have, against a real server; the model is a scripted one."""

import asyncio
import contextlib
import json
import threading
import urllib.request

import openai
import pytest
import uvicorn

from tests import served_model
from tests.ports import free_port
from tests.served_model import until


@contextlib.contextmanager
def listening(application, lifespan="off"):
    """Serves an application at a free port; gives its address."""
    port = free_port()
    config = uvicorn.Config(
        application, host="127.0.0.1", port=port, log_level="error", lifespan=lifespan
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)


@pytest.fixture(scope="module")
def address(stub):
    with listening(stub.application) as made:
        yield made


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_openai_completes(client):
    made = client.completions.create(model="scripted", prompt="the", max_tokens=60)
    assert made.choices[0].text == served_model.SAYS
    assert made.choices[0].finish_reason == "stop" and made.usage.completion_tokens > 16
    assert made.choices[0].model_extra["sources"] == []
    assert made.model_extra["citations"] == []


def test_openai_streams(client):
    with client.completions.create(
        model="scripted", prompt=["a", "b"], max_tokens=60, stream=True, logprobs=2
    ) as stream:
        texts = ["", ""]
        for chunk in stream:
            (choice,) = chunk.choices
            texts[choice.index] += choice.text
            assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)
    assert texts == [served_model.SAYS] * 2


def test_openai_chats_and_streams_a_chat(client):
    asked = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
    made = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert made.choices[0].message.content == served_model.SAYS
    assert made.choices[0].logprobs.content[0].logprob == -0.5
    chunks = list(
        client.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
    )
    said = [each.choices[0].delta.content or "" for each in chunks if each.choices]
    assert "".join(said) == served_model.SAYS and chunks[0].choices[0].delta.role
    assert chunks[-1].usage.prompt_tokens == made.usage.prompt_tokens


def test_openai_knows_our_errors(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="scripted", prompt="1" * 65)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt="a")
    assert caught.value.code == "model_not_found"
    assert [model.id for model in client.models.list()] == ["scripted"]


def test_a_failure_midway_is_an_error_for_openai(stub, client, capsys):
    stub.model.error = RuntimeError("broken")
    with pytest.raises(openai.APIError, match="the server failed"):
        list(client.completions.create(model="scripted", prompt="a", stream=True))
    capsys.readouterr()


def test_a_client_that_closes_its_stream_frees_its_row(stub, client):
    before = stub.scheduler.counts.cancelled
    stub.model.step_s = 0.1
    stream = client.completions.create(
        model="scripted", prompt="a", stream=True, max_tokens=60
    )
    next(iter(stream))
    stream.close()
    until(lambda: stub.scheduler.counts.cancelled == before + 1)
    stub.model.step_s = 0.0
    assert stub.model.num_texts == 0


def _post(address: str, path: str, body: dict) -> dict:
    request = urllib.request.Request(
        address + path,
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_lm_eval_scores_contexts_with_their_continuations(stub, address):
    """The request of lm_eval 0.4.13's `local-completions`, and how it reads the answer."""
    encode = stub.tokenizer.encode
    pairs = [("the capital", " of"), ("it", " isn't it"), ("a", "b")]
    contexts = [encode(context).tolist() for context, _ in pairs]
    wholes = [
        [*context, *encode(said).tolist()]
        for context, (_, said) in zip(contexts, pairs, strict=True)
    ]
    answer = _post(
        address,
        "/v1/completions",
        {
            "model": "scripted",
            "prompt": wholes,
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": 1,
            "seed": 1234,
            "echo": True,
        },
    )
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    for context, whole, choice in zip(contexts, wholes, choices, strict=True):
        told = choice["logprobs"]
        assert len(told["token_logprobs"]) == len(whole) + 1  # exactly one is generated
        assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
        assert sum(told["token_logprobs"][len(context) : -1]) == len(context) - len(
            whole
        )
        for value, likeliest in zip(
            told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True
        ):
            assert value == max(likeliest.values())  # greedy, in exact floats
        decoded = [stub.tokenizer.decode([token]) for token in whole]
        assert told["tokens"][:-1] == decoded  # one by one


def test_lm_eval_generates_until(stub, address):
    answer = _post(
        address,
        "/v1/completions",
        {
            "prompt": [stub.tokenizer.encode("the").tolist()],
            "model": "scripted",
            "max_tokens": 40,
            "temperature": 0,
            "stop": ["\n\n", ": ", "<|endoftext|>"],
            "seed": 1234,
        },
    )
    assert answer["choices"][0]["text"] == " the capital of number 7 isn't it"


def test_langchain_sends_nulls_and_lists_of_prompts(address):
    """What langchain-openai's `OpenAI` sends."""
    nulls = ("top_p", "frequency_penalty", "presence_penalty", "seed", "logprobs")
    body = {"model": "scripted", "prompt": ["a", "b"], "max_tokens": 60, "n": 1}
    answer = _post(address, "/v1/completions", body | dict.fromkeys(nulls))
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [served_model.SAYS] * 2


def test_many_clients_share_steps_and_none_fails():
    """Sixteen at once, with rows for four."""

    async def ask_all(address: str) -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{address}/v1", api_key="none", max_retries=0
        ) as client:
            answers = await asyncio.gather(
                *(
                    client.completions.create(
                        model="scripted", prompt="a", max_tokens=60
                    )
                    for _ in range(16)
                )
            )
        return [answer.choices[0].text for answer in answers]

    with served_model.served() as stub, listening(stub.application) as address:
        assert asyncio.run(ask_all(address)) == [served_model.SAYS] * 16
        assert 2 <= stub.model.most_at_once <= 4


def test_more_clients_than_the_queue_holds_are_told_when_to_come_again():
    async def ask_all(address: str) -> list:
        async with openai.AsyncOpenAI(
            base_url=f"{address}/v1", api_key="none", max_retries=0
        ) as client:
            asked = client.completions.create
            return await asyncio.gather(
                *(asked(model="scripted", prompt="a") for _ in range(100)),
                return_exceptions=True,
            )

    with served_model.served(most_waiting=5) as stub:
        stub.model.hold.clear()
        threading.Timer(1.0, stub.model.hold.set).start()
        with listening(stub.application) as address:
            answers = asyncio.run(ask_all(address))
        refused = [each for each in answers if isinstance(each, openai.RateLimitError)]
        answered = [each for each in answers if not isinstance(each, Exception)]
        assert len(refused) + len(answered) == 100 and answered and refused
        for each in refused:
            assert 1 <= int(each.response.headers["retry-after"]) <= 60
        assert stub.scheduler.num_waiting == stub.scheduler.num_under_way == 0
