"""What a request asks of the model, and what it is told."""

import numpy as np
import pytest

from tests import served_model
from tests.served_model import SAYS, WINDOW

# Every optional field; clients send null for what they leave open.
NULLS = dict.fromkeys(
    [
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "n",
        "stop",
        "stream",
        "stream_options",
        "echo",
        "logprobs",
        "seed",
        "user",
        "suffix",
        "best_of",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "model",
        "repetition_penalty",
        "ignore_eos",
        "retrieval",
        "num_neighbours",
        "effects",
    ]
)


def test_a_null_is_what_was_not_given(stub):
    answer = stub.ask(prompt="hi", **NULLS)
    assert answer.status_code == 200
    (choice,) = answer.json()["choices"]
    assert answer.json()["usage"]["completion_tokens"] == 16
    assert choice["finish_reason"] == "length" and SAYS.startswith(choice["text"])
    wanted = stub.model.joined[-1]
    assert wanted.num_tokens == 16 and wanted.num_neighbours is None


def test_a_null_is_what_was_not_given_in_a_chat(stub):
    answer = stub.ask(
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "hi", "name": None}],
        tools=None,
        response_format=None,
        max_completion_tokens=None,
        top_logprobs=None,
        **NULLS,
    )
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == SAYS


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("hi", 1), (["hi", "you", "there"], 3), ([5, 6, 7], 1), ([[5, 6], [7]], 2)],
)
def test_prompts_are_texts_or_tokens_one_or_many(stub, prompt, count):
    answer = stub.ask(prompt=prompt, max_tokens=3, n=2).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * count))
    if isinstance(prompt[0], int):
        assert stub.model.joined[-1].prompt.tolist() == prompt


def test_no_new_token_with_echo_gives_the_prompt(stub):
    joined = len(stub.model.joined)
    answer = stub.ask(prompt="a prompt", max_tokens=0, echo=True).json()
    (choice,) = answer["choices"]
    assert choice["text"] == "a prompt" and choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0
    assert len(stub.model.joined) == joined  # the model had nothing to do


def test_reaching_the_window_is_an_answer_that_ended_by_length(stub):
    prompt = [5] * WINDOW
    answer = stub.ask(prompt=prompt, max_tokens=9000, ignore_eos=True)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["finish_reason"] == "length"


def test_a_harness_reads_how_likely_its_text_is_from_one_pass(stub):
    """lm_eval sends this and reads `token_logprobs[ctxlen:-1]`."""
    prompts = [stub.tokenizer.encode(t).tolist() for t in ("a test", "so it is")]
    joined = len(stub.model.joined)
    answer = stub.ask(
        model="scripted",
        prompt=prompts,
        temperature=0,
        max_tokens=1,
        logprobs=1,
        seed=1234,
        echo=True,
    ).json()
    assert len(stub.model.joined) == joined
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        told = choice["logprobs"]
        assert told["token_logprobs"] == [None] + [-1.0] * len(prompt)
        assert len(told["tokens"]) == len(prompt) + 1
        assert told["top_logprobs"][0] is None
        assert all(
            max(top.values()) == top[token] == -1.0
            for top, token in zip(
                told["top_logprobs"][1:], told["tokens"][1:], strict=True
            )
        )


def test_tokens_are_told_one_by_one_with_their_places(stub):
    (choice,) = stub.ask(prompt="hi", max_tokens=64, logprobs=3).json()["choices"]
    told = choice["logprobs"]
    assert len(told["tokens"]) == len(stub.model.tokens) == len(told["text_offset"])
    assert told["text_offset"] == sorted(told["text_offset"])
    for token, place in zip(told["tokens"], told["text_offset"], strict=True):
        assert token.startswith("bytes:") or choice["text"].startswith(token, place)
    assert "".join(t for t in told["tokens"] if not t.startswith("bytes:")) in (
        choice["text"].replace("\U0001f99c", "").replace("\u00e9", ""),
        choice["text"].replace("\U0001f99c", ""),
    )


def test_no_log_probability_is_told_of_what_a_stop_string_cut(stub):
    (choice,) = stub.ask(prompt="hi", max_tokens=64, logprobs=0, stop=" isn't").json()[
        "choices"
    ]
    assert choice["text"] == SAYS[: SAYS.index(" isn't")]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]


def test_more_than_the_limits_is_refused_or_cut():
    with served_model.served(limits={"max_tokens": 5, "max_texts": 2}) as stub:
        answer = stub.ask(prompt="hi", max_tokens=50).json()
        assert answer["usage"]["completion_tokens"] == 5
        refused = stub.ask(prompt="hi", n=3)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "n"


def test_each_text_of_a_request_draws_by_its_own_seed(stub):
    stub.ask(prompt="hi", n=3, seed=2**32 - 1, max_tokens=1)
    seeds = [wanted.sampling.seed for wanted in stub.model.joined[-3:]]
    assert seeds == [2**32 - 1, 0, 1]


def test_penalties_reach_the_model(stub):
    given = {"presence_penalty": -2, "frequency_penalty": 1.5}
    stub.ask(prompt="hi", max_tokens=1, **given)
    sampling = stub.model.joined[-1].sampling
    assert sampling.presence_penalty == -2 and sampling.frequency_penalty == 1.5


def test_infinitely_unlikely_is_a_number_in_json(stub, monkeypatch):
    def impossible(prompt, num_neighbours):
        scores = scored(prompt, num_neighbours)
        return scores._replace(log_probs_L=np.full(len(prompt), -np.inf))

    scored = stub.model.scores
    monkeypatch.setattr(stub.model, "scores", impossible)
    answer = stub.ask(prompt="hi", max_tokens=0, echo=True, logprobs=1).json()
    assert answer["choices"][0]["logprobs"]["token_logprobs"][1] == -9999.0
