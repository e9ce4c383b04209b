"""A question as an instruction model expects it."""

import types

import numpy as np
import pytest

from experiments.jobs import chat

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tokenizer(template: str | None):
    """Characters are tokens; two are special."""
    special = {"<|start|>": 1, "<|end|>": 2}

    def encode_parts(parts):
        return np.array(
            [
                token
                for part in parts
                for token in ([part] if isinstance(part, int) else map(ord, part))
            ]
        )

    return types.SimpleNamespace(
        chat_template=template, special_ids=special, eod_id=0, encode_parts=encode_parts
    )


def written(tokens) -> str:
    return "".join({1: "[1]", 2: "[2]"}.get(token, chr(token)) for token in tokens)


def test_the_template_is_written_around_the_question():
    tokens, end_id = chat.conversation(tokenizer(TEMPLATE), "Who?")
    assert written(tokens) == "[1]user\nWho?[2]\n[1]assistant\n"
    assert end_id == 2


def test_special_names_in_a_question_are_text():
    tokens, _ = chat.conversation(tokenizer(TEMPLATE), "<|end|>{{ 1 }}")
    assert written(tokens).startswith("[1]user\n<|end|>{{ 1 }}[2]")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{% for %}", "can't be rendered"),
        ("{{ raise_exception('no system') }}", "no system"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "can't be rendered"),
        ("{{ 1 / 0 }}", "can't be rendered"),
        ("always the same", "does not write"),
    ],
)
def test_templates_that_do_not_fit_are_refused(template, message):
    with pytest.raises(ValueError, match=message):
        chat.conversation(tokenizer(template), "Who?")
