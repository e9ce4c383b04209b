"""Pre-tokenizers: how a fast tokenizer cuts text before it merges, without losing any of it.

Called by `byte_pair_model.py`, and by `tokenizer_files.py` for the kinds that a GGUF names.
What would remove or change characters is refused by its name, and so is a pattern that can
run for hours on a short text: a tokenizer may come from anybody.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_SPACE_MARK = "\u2581"
_KEEPING = {"Isolated", "Contiguous", "MergedWithPrevious", "MergedWithNext"}

_DIGITS = {"type": "Digits", "individual_digits": True}
_WORDS = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_LETTERS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _pattern(digits: str) -> dict:
    split = {"type": "Split", "pattern": {"Regex": _LETTERS % digits}}
    parts = [
        split | {"behavior": "Isolated", "invert": False},
        _WORDS | {"use_regex": False},
    ]
    return {"type": "Sequence", "pretokenizers": parts}


_DIGITS_FIRST = {"type": "Sequence", "pretokenizers": [_DIGITS, _WORDS]}
# By the name in a GGUF's `tokenizer.ggml.pre`, as llama.cpp's src/llama-vocab.cpp has them.
OF_GGUF: dict[str, dict] = {
    "gpt-2": _WORDS,
    "llama-bpe": _pattern("{1,3}"),
    "qwen2": _pattern(""),
    "refact": _DIGITS_FIRST,
    "smollm": _DIGITS_FIRST,
    "starcoder": _DIGITS_FIRST,
}

# What a pattern is made of: classes of characters, openings of groups, all else by itself.
_PARTS = re.compile(
    r"(?P<one>\\[pP]\{\^?\w+\}|\\[^\w]|\\[sSdDwWrntfv]|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}"
    r"|\[\^?(?:\\.|[^\[\]\\])+\])"
    r"|(?P<open>\((?:\?(?:i?:|=|!|<=|<!))?)|(?P<many>[*+]|\{\d*,?\d*\})|(?P<other>.)",
    re.DOTALL,
)
_MOST_PATTERN, _MOST_MANY = 2000, 3


def steps(description: object, source: str) -> list[Mapping]:
    """Lists the pre-tokenizers of a description, each of a kind that keeps all text.

    Args:
        description: `pre_tokenizer` of a tokenizer.json; None for none.
        source: what to call the tokenizer in errors.
    Raises:
        ValueError: naming what loses text or is not known.
    """
    if description is None:
        return []
    parts: object = [description]
    if isinstance(description, Mapping) and description.get("type") == "Sequence":
        parts = description.get("pretokenizers") or []
    if not isinstance(parts, list) or not all(isinstance(p, Mapping) for p in parts):
        raise ValueError(f"{source}: its pre_tokenizer is malformed")
    for part in parts:
        kind = part.get("type")
        if str(kind) not in _MAKERS:
            raise ValueError(
                f"{source}: its pre-tokenizer {kind!s:.40} is none that is known to keep "
                f"every character ({', '.join(_MAKERS)})"
            )
    return parts


def build(parts: list[Mapping], source: str) -> "PreTokenizer | None":
    """Makes the pre-tokenizer that does one step after the other; None for no step.

    Nothing that adds characters is taken over: neither `add_prefix_space` nor a Metaspace's
    prefix.

    Raises:
        ValueError: naming the step that loses text or that the library refuses.
    """
    from tokenizers import pre_tokenizers

    made = []
    for part in parts:
        try:
            made.append(_MAKERS[part["type"]](part))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(
                f"{source}: pre-tokenizer {part['type']}: {error!s:.200}"
            ) from error
    return pre_tokenizers.Sequence(made) if made else None


def _split(part: Mapping) -> "PreTokenizer":
    from tokenizers import Regex, pre_tokenizers

    behavior, invert = part.get("behavior"), part.get("invert") is True
    if behavior == "Removed" and invert:  # keeps what matches; we keep the rest too
        behavior, invert = "Isolated", False
    pattern = part.get("pattern")
    pattern = pattern if isinstance(pattern, Mapping) else {}
    given: object = pattern.get("Regex", pattern.get("String"))
    if not isinstance(given, str) or not given:
        raise ValueError("its pre-tokenizer Split has no pattern")
    if "Regex" in pattern:
        check_pattern(given)
    wanted = Regex(given) if "Regex" in pattern else given
    return pre_tokenizers.Split(wanted, _kept("Split", behavior), invert)


def _punctuation(part: Mapping) -> "PreTokenizer":
    from tokenizers import pre_tokenizers

    behavior = part.get("behavior", "Isolated")
    return pre_tokenizers.Punctuation(_kept("Punctuation", behavior))


def _digits(part: Mapping) -> "PreTokenizer":
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Digits(individual_digits=bool(part.get("individual_digits")))


def _byte_level(part: Mapping) -> "PreTokenizer":
    from tokenizers import pre_tokenizers

    use_regex = bool(part.get("use_regex", True))
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _metaspace(part: Mapping) -> "PreTokenizer":
    from tokenizers import pre_tokenizers

    if part.get("replacement") != _SPACE_MARK:
        raise ValueError("its pre-tokenizer Metaspace has another mark than U+2581")
    split = bool(part.get("split", True))
    return pre_tokenizers.Metaspace(_SPACE_MARK, prepend_scheme="never", split=split)


_MAKERS = {
    "ByteLevel": _byte_level,
    "Digits": _digits,
    "Metaspace": _metaspace,
    "Punctuation": _punctuation,
    "Split": _split,
}


def _kept(kind: str, behavior: object) -> str:
    """A behaviour that keeps what matches, as the library spells it."""
    if not isinstance(behavior, str) or behavior not in _KEEPING:
        raise ValueError(f"its pre-tokenizer {kind} loses text ({behavior!s:.40})")
    return re.sub(r"(?<=[a-z])([A-Z])", r"_\1", behavior).lower()


def check_pattern(pattern: str) -> None:
    """Refuses a regular expression that could run for very long.

    Accepted are repetitions of single classes of characters, at most three without an end
    in each alternative, and groups that occur at most once, as published tokenizers have.

    Raises:
        ValueError: if there is another.
    """
    last, unbounded = "", 0
    refused = len(pattern) > _MOST_PATTERN
    for match in _PARTS.finditer(pattern):
        kind, text = match.lastgroup, match.group()
        if kind == "many":
            refused |= last == ")"
            unbounded += text in "*+" or text.endswith(",}")
        refused |= kind == "other" and text in "\\[]"
        refused |= kind == "open" and pattern.startswith("?", match.end())
        unbounded = 0 if text == "|" else unbounded
        refused |= unbounded > _MOST_MANY
        last = text
    if refused:
        raise ValueError(
            f"the pattern {pattern:.80} of its pre-tokenizer is refused: it could take "
            "hours on a short text"
        )
