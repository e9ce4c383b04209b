"""Pre-tokenizers keep every character, and a pattern that could run for hours is refused."""

import json
import re

import pytest

from data_pipeline.text.tokenizer import Tokenizer
from data_pipeline.text.tokenizers import pre_tokenizers
from tests import fast_tokenizers

TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_4O = TEKKEN.replace(r"\p{M}]+|", r"\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|")
DEEPSEEK = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
TEXT = "It isn't  12345\n\n  x = [1]; \u00e9\u0301 \u4e2d\u6587 \U0001f923\r\n\t end  "


def of(step: dict) -> Tokenizer:
    last = {"type": "ByteLevel", "use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [step, last]}
    description = fast_tokenizers.byte_level(pre_tokenizer=steps)
    return Tokenizer(json.dumps(description).encode(), "it")


def split(pattern: str, behavior: str = "Isolated", **more: object) -> dict:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior}
    return step | {"invert": False, **more}


@pytest.mark.parametrize("pattern", [TEKKEN, GPT_4O, DEEPSEEK, r"\p{N}{1,3}", " "])
def test_patterns_of_published_tokenizers_are_known(pattern):
    assert of(split(pattern)).decode(of(split(pattern)).encode(TEXT)) == TEXT


@pytest.mark.parametrize("name", pre_tokenizers.OF_GGUF)
def test_kinds_of_gguf_keep_all_text(name):
    description = fast_tokenizers.byte_level(pre_tokenizer=pre_tokenizers.OF_GGUF[name])
    tokenizer = Tokenizer(json.dumps(description).encode(), "it")
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize(
    "step",
    [
        {"type": "Digits", "individual_digits": True},
        {"type": "Punctuation", "behavior": "MergedWithPrevious"},
        split(r"\w+", "Removed", invert=True),
        split(r"\s", "MergedWithNext"),
        {"type": "Split", "pattern": {"String": "("}, "behavior": "Contiguous"},
    ],
    ids=lambda step: step["type"],
)
def test_steps_keep_all_text(step):
    tokenizer = of(step)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (split(r"\s", "Removed"), r"Split loses text \(Removed\)"),
        (split(r"\s", ["x"]), "Split loses text"),
        (split(""), "no pattern"),
        ({"type": "Split", "pattern": 7, "behavior": "Isolated"}, "no pattern"),
        ({"type": "Punctuation", "behavior": "Removed"}, "Punctuation loses text"),
        ({"type": "Metaspace", "replacement": "_"}, "another mark"),
        ({"type": "WhitespaceSplit"}, "WhitespaceSplit is none"),
        ({"type": "Sequence", "pretokenizers": []}, "Sequence is none"),
        (split(r"[z-a]"), "pre-tokenizer Split"),
    ],
    ids=str,
)
def test_steps_that_lose_text_are_refused(step, says):
    with pytest.raises(ValueError, match=says) as error:
        of(step)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(a|a)*b",
        r"(?:a?){50}a",
        r"((a)*)*",
        r"a*a*a*a*a*b",
        r"(a)\1",
        r"\k<x>(?<x>a)",
        r"(?<x>a\g<x>?)",
        r"(?(1)a|b)",
        r"[[a]]",
        "x" * 3000,
        r"(?i)a",
    ],
    ids=lambda pattern: re.sub("x+", "x", pattern),
)
def test_patterns_that_could_run_for_hours_are_refused(pattern):
    with pytest.raises(ValueError, match="hours") as error:
        of(split(pattern))
    assert "\n" not in str(error.value)
