"""A prompt as an instruction model expects it: rendered by the decoder's chat template.

The template comes with the decoder and may be anybody's: it runs in a sandbox. The prompt
itself is put in afterwards, so that nothing in it is taken for a special token.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from data_pipeline.text.tokenizer import Tokenizer

# Characters of the private use area, which no template writes.
_MARK, _ANSWER = "\ue000{}\ue000", "\ue000answer\ue000"


def conversation(
    tokenizer: Tokenizer, question: str
) -> tuple[Int[np.ndarray, " L"], int]:
    """Tokens of a question up to where the answer begins, and the token that ends it.

    Raises as `rendered`.
    """
    return rendered(tokenizer, [{"role": "user", "content": question}])


def rendered(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]
) -> tuple[Int[np.ndarray, " L"], int]:
    """Tokens of messages up to where the next answer begins, and the token that ends it.

    Args:
        messages: each with its `role` and its `content`.
    Raises:
        ValueError: if the decoder has no chat template, or it can't be rendered.
    """
    texts = {_MARK.format(n): said["content"] for n, said in enumerate(messages)}
    marked = [
        {"role": said["role"], "content": mark}
        for mark, said in zip(texts, messages, strict=True)
    ]
    asked, answered = (
        {"role": "user", "content": _MARK.format(0)},
        {"role": "assistant", "content": _ANSWER},
    )
    opening = _rendered(tokenizer, marked, add_generation_prompt=True)
    whole = _rendered(tokenizer, [asked, answered], add_generation_prompt=False)
    if any(opening.count(mark) != 1 for mark in texts) or whole.count(_ANSWER) != 1:
        raise ValueError("the decoder's chat template does not write what it is given")
    after = _parts(tokenizer, whole.split(_ANSWER)[1])
    ends = [part for part in after if not isinstance(part, str)]
    parts: list[str | int] = []
    for piece in re.split(f"({'|'.join(texts)})", opening):
        parts += [texts[piece]] if piece in texts else _parts(tokenizer, piece)
    return tokenizer.encode_parts(parts), ends[0] if ends else tokenizer.eod_id


def _rendered(tokenizer: Tokenizer, messages: list[dict], **settings) -> str:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if tokenizer.chat_template is None:
        raise ValueError(
            "evaluation.chat: this decoder has no chat template, so it expects plain text"
        )

    def refuse(message: str):
        raise jinja2.TemplateError(message)

    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    sandbox.globals["raise_exception"] = refuse
    names = {number: name for name, number in tokenizer.special_ids.items()}
    try:
        return sandbox.from_string(tokenizer.chat_template).render(
            messages=messages,
            bos_token="",  # the model itself opens every text
            eos_token=names.get(tokenizer.eod_id, ""),
            **settings,
        )
    # A template is a program: whatever it ends with, it is the template's fault.
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"the decoder's chat template can't be rendered ({error}); leave out "
            "evaluation.chat"
        ) from error


def _parts(tokenizer: Tokenizer, rendered: str) -> list[str | int]:
    """Plain text and ids of special tokens, as they follow each other."""
    if not tokenizer.special_ids:
        return [rendered]
    longest_first = sorted(tokenizer.special_ids, key=len, reverse=True)
    pattern = "(" + "|".join(map(re.escape, longest_first)) + ")"
    return [
        tokenizer.special_ids.get(piece, piece)
        for piece in re.split(pattern, rendered)
        if piece
    ]
