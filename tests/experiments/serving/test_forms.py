"""What a request may look like. `test_app` has those that are refused."""

import json

import pytest

from experiments.serving import forms


def _completion(**fields) -> forms.Completion:
    return forms.parse(forms.Completion, json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 0, 2], [[1, 0, 2]]),
        ([0], [[0]]),
        ([[1, 2], [0]], [[1, 2], [0]]),
    ],
)
def test_a_prompt_is_text_or_tokens_one_or_several(prompt, prompts):
    assert _completion(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        (forms.Completion, {"prompt": "a"}),
        (forms.Chat, {"messages": [{"role": "user", "content": "a"}]}),
        (forms.Search, {"query": "a"}),
    ],
)
def test_null_is_the_same_as_not_given(kind, needed):
    optional = dict.fromkeys(kind.model_fields.keys() - needed.keys())
    assert len(optional) >= 3
    body = json.dumps(needed | optional).encode()
    assert forms.parse(kind, body) == forms.parse(kind, json.dumps(needed).encode())


def test_whole_numbers_are_numbers_and_unknown_fields_are_passed_over():
    form = _completion(prompt="a", temperature=1, top_p=1, something=[{}], user="me")
    assert (form.temperature, form.top_p, form.max_tokens) == (1.0, 1.0, 16)


def test_a_stop_string_alone_or_several():
    assert _completion(prompt="a", stop="x").stops == ("x",)
    assert _completion(prompt="a", stop=["x", "{y}"]).stops == ("x", "{y}")
    assert _completion(prompt="a").stops == ()


def test_a_message_may_come_in_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"messages": [{"role": "user", "content": parts}]}
    form = forms.parse(forms.Chat, json.dumps(body).encode())
    assert form.messages[0].text == "ab"
