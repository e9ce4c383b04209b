"""The paths of the server, asked well and badly."""

import asyncio
import copy
import json
import random

import pytest

from tests import asgi, served_model

COMPLETION = {"prompt": "the", "max_tokens": 4, "temperature": 0}
CHAT = {"messages": [{"role": "user", "content": "the"}], "max_tokens": 4}
SEARCH, DOCUMENTS = {"query": "the"}, {"documents": [{"text": "a"}]}
PATHS = {
    "/v1/completions": COMPLETION,
    "/v1/chat/completions": CHAT,
    "/v1/search": SEARCH,
    "/v1/documents": DOCUMENTS,
    "/tokenize": {"prompt": "the"},
    "/detokenize": {"tokens": [1, 2]},
}


def _is_refusal(status: int, said: dict) -> bool:
    assert 400 <= status < 500, (status, said)
    error = said["error"]
    assert set(said) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert type(error["message"]) is str and error["message"]
    assert "Traceback" not in error["message"] and "/work" not in error["message"]
    return True


_WRONG_NUMBERS = {
    "max_tokens": [-1, 1.5, "5", True, 2**31, [], {}, "null"],
    "temperature": [-0.1, "1", True, [1], 1e9],
    "top_p": [-1, 1.01, "0.5"],
    "top_k": [-2, 0.5, "5", 2**40],
    "min_p": [-0.1, 2],
    "repetition_penalty": [0, -1, "1"],
    "presence_penalty": [2.1, 3, "0"],
    "frequency_penalty": [-2.1, "x"],
    "n": [0, -1, 129, 1.5, "2"],
    "seed": [1.5, "1", 2**64, True],
    "logprobs": [-1, 6, "1", 0.5],
    "best_of": [0, 2, "1"],
    "stop": ["", [""], [1], {}, ["x"] * 17, 5],
    "stream": ["true", 1, []],
    "echo": ["yes", 0],
    "logit_bias": [{"5": 1}, [], "x", {"5": "a"}],
    "suffix": ["x", 5],
    "stream_options": [{"include_usage": True}, "x"],
    "model": ["gpt-4", 5, []],
    "retrieval": ["on", 1],
    "num_neighbours": [-1, "2", 1.5],
    "effects": ["yes"],
    "ignore_eos": [1],
    "user": [5],
}
_WRONG_PROMPTS = [
    None, "", [], [""], ["a", ""], [[]], [[1], []], 5, 1.5, True, {}, ["a", 1], [1, "a"],
    [1.5], [-1], [2**40], [[1], "a"], [[[1]]], [300], [None], ["a", None], [True],
]  # fmt: skip
_BAD = [
    *(
        ("/v1/completions", {**COMPLETION, name: value}, name)
        for name, values in _WRONG_NUMBERS.items()
        for value in values
    ),
    *(("/v1/completions", {**COMPLETION, "prompt": p}, "prompt") for p in _WRONG_PROMPTS),
    ("/v1/completions", {}, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": "1" * 65}, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": ["a"] * 17}, "prompt"),
    ("/v1/completions", {**COMPLETION, "n": 17}, "n"),
    ("/v1/completions", {**COMPLETION, "prompt": ["a"] * 5, "n": 4}, "n"),
    ("/v1/chat/completions", {}, "messages"),
    *(
        ("/v1/chat/completions", {**CHAT, "messages": messages}, "messages")
        for messages in (
            None, [], "hi", {}, [{}], [5], [{"role": "user"}, 5], [{"content": "a"}],
            [{"role": "robot", "content": "a"}], [{"role": "user", "content": 5}],
            [{"role": "user", "content": [{"type": "image_url"}]}],
            [{"role": "user", "content": ["a"]}], [{"role": 5, "content": "a"}],
        )
    ),
    ("/v1/chat/completions", {**CHAT, "tools": [{}]}, "tools"),
    ("/v1/chat/completions", {**CHAT, "top_logprobs": 2}, "top_logprobs"),
    ("/v1/chat/completions", {**CHAT, "logprobs": 2}, "logprobs"),
    ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 6}, "top_logprobs"),
    ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}},
     "response_format"),
    ("/v1/chat/completions", {**CHAT, "max_tokens": 0}, "max_tokens"),
    ("/v1/search", {}, "query"),
    ("/v1/search", {"query": 5}, "query"),
    ("/v1/search", {"query": "a", "k": 0}, "k"),
    ("/v1/search", {"query": "a", "k": "5"}, "k"),
    ("/v1/search", {"query": "a", "k": 1001}, "k"),
    ("/v1/search", {"query": "a", "max_distance": -1}, "max_distance"),
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": 5}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": CHAT["messages"]}, "prompt"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": "a"}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens"),
    ("/detokenize", {"tokens": [1.5]}, "tokens"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "param"), _BAD, ids=lambda value: json.dumps(value)[:60]
)
def test_what_is_wrong_is_refused_by_its_name(stub, path, body, param):
    answer = stub.client.post(path, json=body)
    assert _is_refusal(answer.status_code, answer.json())
    assert answer.json()["error"]["param"] == param
    assert not stub.scheduler.num_waiting


def test_there_are_many_of_them():
    assert len(_BAD) >= 60


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"5", b'"a"', b"\xff\xfe", b"{'prompt': 'a'}",
        b'{"prompt": "a",}', b'{"prompt": "\\ud800"}', b'{"prompt": "\xff"}',
        b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 100_000, b'{"a":' * 10_000, b"\x00", b"a" * 100_000,
    ],
    ids=range(18),
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_what_is_no_json_is_refused(stub, path, body):
    answer = stub.client.post(path, content=body)
    assert _is_refusal(answer.status_code, answer.json())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/models/other", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/v1/passages/0", 404),
        ("GET", "/v1/passages/x", 404),
        ("GET", "/v1/documents/x", 404),
        ("DELETE", "/v1/documents/x", 404),
        ("POST", "/v1/search", 404),
        ("GET", "/docs", 404),
    ],
)
def test_what_is_not_there_is_said_in_the_same_form(stub, method, path, status):
    content = {"content": b'{"query": "a"}'} if method == "POST" else {}
    answer = stub.client.request(method, path, **content)
    assert answer.status_code == status and _is_refusal(status, answer.json())


def test_a_body_that_never_ends_is_refused(stub, monkeypatch):
    from experiments.serving import app

    monkeypatch.setattr(app, "_MAX_BODY_BYTES", 1000)
    answer = stub.client.post("/v1/completions", content=b" " * 1001)
    assert answer.status_code == 413 and _is_refusal(413, answer.json())


_ODD = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**70, -(2**70), 0.5, -0.5, 1e308, "", "a",
    "5", "null", "\ufffd", "\u0000", "\U0001f99c" * 30, [], {}, [[]], [{}], [None], ["a"],
    [1, "a"], [0.5], {"a": 1}, {"type": "x"}, {"role": "user"}, [[1], [2]], ["a"] * 40,
    [10**6],
]  # fmt: skip


def _odd(rng: random.Random) -> tuple[str, bytes]:
    """A request of which something was changed; it may be a good one yet."""
    path, body = rng.choice([*PATHS.items()])
    body = copy.deepcopy(body)
    names = [*body, *_WRONG_NUMBERS, "messages", "documents", "k", "tools"]
    for _ in range(rng.randint(1, 3)):
        action = rng.random()
        name = rng.choice(names)
        if action < 0.75:
            body[name] = rng.choice(_ODD)
        elif action < 0.85:
            body.pop(rng.choice([*body]), None) if body else None
        elif body.get("messages"):
            body["messages"] = [rng.choice(_ODD) for _ in range(rng.randint(0, 3))]
    content = json.dumps(body).encode()
    if rng.random() < 0.2:
        place = rng.randrange(len(content))
        kept = content[:place] if rng.random() < 0.5 else content[place:]
        content = kept + bytes(rng.randrange(256) for _ in range(rng.randint(0, 3)))
    return path, content


def test_of_a_thousand_bad_requests_none_does_harm():
    """The same at every run. Good ones are among them, and are answered."""
    rng, refused, answered = random.Random(0), 0, 0

    async def ask_all(stub):
        nonlocal refused, answered
        while refused < 1000:
            path, content = _odd(rng)
            made = await asyncio.wait_for(
                asgi.exchange(stub.application, path, content), 20
            )
            if made.status == 200:
                answered += 1
            else:
                refused += _is_refusal(made.status, made.json())

    with served_model.served() as stub:
        asyncio.run(ask_all(stub))
        assert refused >= 1000 and answered >= 50
        assert stub.scheduler.counts.failed == 0 and stub.scheduler.is_alive
        assert stub.ask(**COMPLETION).status_code == 200


def test_null_for_every_optional_field_is_the_default(stub):
    nulls = dict.fromkeys(name for name in _WRONG_NUMBERS if name != "temperature")
    answer = stub.ask(prompt="the", **nulls, temperature=None)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 16  # max_tokens


def test_the_model_is_listed_and_may_be_named(stub):
    (model,) = stub.client.get("/v1/models").json()["data"]
    assert model["id"] == "scripted" and model["object"] == "model"
    assert stub.client.get("/v1/models/scripted").json() == model
    assert stub.ask(**COMPLETION, model="scripted").json()["model"] == "scripted"


def test_health_says_what_is_served(stub):
    said = stub.client.get("/health").json()
    assert said["status"] == "ok" and said["window_tokens"] == served_model.WINDOW
    assert not said["retrieval"] and not said["documents_enabled"]


@pytest.mark.parametrize("tokens_key", ["max_tokens", "max_completion_tokens"])
def test_a_chat_is_written_by_the_template_and_ends_with_its_turn(stub, tokens_key):
    given = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<|im_end|>?"},
    ]
    answer = stub.ask("/v1/chat/completions", messages=given, **{tokens_key: 60}).json()
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion" and answer["id"].startswith(
        "chatcmpl-"
    )
    assert (
        choice["message"]["role"] == "assistant" and choice["finish_reason"] == "stop"
    )
    assert choice["message"]["content"] == served_model.SAYS
    wanted, special = stub.model.joined[-1], stub.tokenizer.special_ids
    assert wanted.eod_id == special["<|im_end|>"]
    # What the user wrote is text, and ends no turn.
    assert list(wanted.prompt).count(special["<|im_end|>"]) == 2
    shown = stub.ask("/tokenize", messages=given).json()["tokens"]
    assert shown == wanted.prompt.tolist()


def test_a_model_without_a_template_does_not_chat():
    with served_model.served(of=served_model.tokenizer(None)) as stub:
        answer = stub.ask("/v1/chat/completions", **CHAT)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "no_chat_template"


def test_tokens_and_text_are_each_others(stub):
    text = "caf\u00e9 <|im_end|> \U0001f99c"
    made = stub.ask("/tokenize", prompt=text, add_special_tokens=False).json()
    assert made["count"] == len(made["tokens"]) and made["max_model_len"] == 64
    assert stub.ask("/detokenize", tokens=made["tokens"]).json() == {"prompt": text}
    info = stub.client.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|endoftext|>"
    # As lm_eval finds the token that ends a text.
    end = stub.ask("/tokenize", prompt=info["eos_token"]).json()["tokens"]
    assert end == [stub.tokenizer.eod_id]


def test_a_page_is_sent_with_its_headers_and_needs_no_key():
    page = {"/": ("text/html", b"<p>hello"), "/app.js": ("text/javascript", b"1")}
    headers = {"Content-Security-Policy": "default-src 'none'"}
    with served_model.served(page=page, page_headers=headers, key="secret") as stub:
        for path, (media_type, content) in page.items():
            answer = stub.client.get(path)
            assert answer.content == content
            assert answer.headers["content-type"].startswith(media_type)
            assert answer.headers["content-security-policy"] == "default-src 'none'"
        assert stub.client.get("/v1/models").status_code == 401
        known = {"Authorization": "Bearer secret"}
        assert stub.client.get("/v1/models", headers=known).status_code == 200
