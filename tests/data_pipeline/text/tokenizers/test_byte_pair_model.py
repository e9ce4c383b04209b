"""A pretrained decoder's tokenizer keeps every byte, obeys no text and refuses what would."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.text.tokenizer import Tokenizer
from data_pipeline.text.tokenizers import byte_pair_model
from tests import fast_tokenizers
from tests.fast_tokenizers import SPECIALS, TEXT

LACKING = b"\x04\xf1"
BYTE_LEVEL = fast_tokenizers.byte_level()
BYTE_FALLBACK = fast_tokenizers.byte_fallback()
GEMMA = fast_tokenizers.byte_fallback(
    normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    pre_tokenizer={
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    },
)
MISTRAL = fast_tokenizers.byte_fallback(
    normalizer=None,
    pre_tokenizer={
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "first",
        "split": False,
    },
)


def made(description: dict) -> Tokenizer:
    return Tokenizer(json.dumps(description).encode(), "it")


KINDS = [
    made(BYTE_LEVEL),
    made(fast_tokenizers.byte_level(without=LACKING)),
    made(BYTE_FALLBACK),
    made(GEMMA),
    made(MISTRAL),
]
anything = st.text(max_size=80) | st.text(
    alphabet=" \t\n\r\0\4\u2581\u0120\u0301\u200d\ufeff<|>/s0x41endoftxim_ar7\u00e9\U0001f923"
    "\U00040000\u0627\u0928\u4e2d",
    max_size=80,
)


def check(tokenizer: Tokenizer, text: str) -> None:
    ids_L = tokenizer.encode(text)
    assert ids_L.dtype == np.int32
    assert tokenizer.decode_bytes(ids_L) == text.encode()
    assert tokenizer.token_bytes_V[ids_L].sum() == len(text.encode())
    commands = {*tokenizer.special_ids.values(), tokenizer.eod_id, tokenizer.pad_id}
    assert not commands & set(ids_L.tolist())


@settings(deadline=None)
@given(anything)
@example("<|endoftext|><|im_start|>system\n<|im_end|> <s></s><unk>")
@example("<0x41><0x0A> <0xE2><0x96><0x81>")
@example(" " * 10 + "7" + " " * 10 + "007")
@example("\r\r\n\n\r \t\v\f\x1c\x7f\x85\u2028")
@example("e\u0301\u0e33\u1100\u1161 \u2581\u2581 \u2581")
@example("".join(map(chr, range(0x180))))
@example("")
def test_every_text_comes_back_and_none_is_a_command(text):
    for tokenizer in KINDS:
        check(tokenizer, text)


def test_every_character_comes_back():
    plane = [chr(c) for c in range(0x11000) if not 0xD800 <= c < 0xE000]
    planes = "".join(chr(c) for c in range(0x20000, 0x110000, 0x3FF))
    for tokenizer in KINDS:
        check(tokenizer, "".join(plane) + planes)


def test_ids_are_the_librarys():
    plain = tokenizers.Tokenizer.from_str(json.dumps(BYTE_LEVEL))
    for text in TEXT:
        assert KINDS[0].encode(text).tolist() == plain.encode(text).ids
    # Without the space that Llama 2 puts in front.
    plain = tokenizers.Tokenizer.from_str(json.dumps(GEMMA))
    plain.no_truncation()
    plain.no_padding()
    for text in ("the  xis the", "this is caf\u00e9 \U0001f923"):
        for tokenizer in KINDS[2:4]:
            assert tokenizer.encode(text).tolist() == plain.encode(text).ids


def test_a_byte_without_a_token_takes_a_special_one_that_nobody_uses():
    tokenizer = KINDS[1]
    last = [tokenizer.encode(text).tolist() for text in ("\4", "\U00040000")]
    assert last[0] == [SPECIALS.index("<|b|>")]
    assert last[1][0] == SPECIALS.index("<|a|>")
    assert set(tokenizer.special_ids) == set(SPECIALS[:3])
    assert tokenizer.vocab_size == len(
        fast_tokenizers.byte_level(without=LACKING)["model"]["vocab"]
    )


def test_bytes_for_which_none_is_left_are_refused():
    description = fast_tokenizers.byte_level(without=bytes(range(8)))
    with pytest.raises(ValueError, match=r"it: .*no token for byte 0x00 \(8 such"):
        made(description)


def test_a_long_text_is_cut_where_it_begins_anew(monkeypatch):
    texts = [
        "\n".join(TEXT) + " " * 50 + "7" * 90,
        "word " * 200,
        "x" * 500,
        " \n" * 99,
    ]
    whole = [[kind.encode(text) for kind in KINDS] for text in texts]
    monkeypatch.setattr(byte_pair_model, "_PART_CHARS", 64)
    for text, of_kinds in zip(texts, whole, strict=True):
        assert max(map(len, byte_pair_model._parts(text))) <= 128
        for kind, ids_L in zip(KINDS, of_kinds, strict=True):
            check(kind, text)
            if text[0] in "Tw":
                np.testing.assert_array_equal(kind.encode(text), ids_L)


def test_ends_beginnings_and_padding():
    tokenizer = KINDS[0]
    assert tokenizer.eod_id == tokenizer.bos_id == tokenizer.pad_id == 0
    assert tokenizer.special_ids == {name: i for i, name in enumerate(SPECIALS)}
    assert tokenizer.token_bytes_V[: len(SPECIALS)].tolist() == [0] * len(SPECIALS)
    assert (KINDS[2].eod_id, KINDS[2].bos_id) == (2, 1)
    declared = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    instruct = made({**BYTE_LEVEL, "retro_jax": {**declared, "pad_token": "<|a|>"}})
    assert (instruct.eod_id, instruct.bos_id, instruct.pad_id) == (0, 0, 3)
    renamed = json.loads(json.dumps(BYTE_LEVEL).replace("<|endoftext|>", "<|c|>"))
    with pytest.raises(ValueError, match="no end-of-document token: name"):
        made(renamed)
    assert made({**renamed, "retro_jax": declared}).eod_id == 2


def test_what_is_kept_makes_the_same_again():
    spaced = json.dumps({**BYTE_LEVEL, "post_processor": None}, indent=3).encode()
    one, two = Tokenizer(spaced, "it"), made(BYTE_LEVEL)
    assert one.model == two.model == Tokenizer(one.model, "it").model
    assert one.fingerprint == two.fingerprint != KINDS[1].fingerprint
    # It is a tokenizer.json still.
    plain = tokenizers.Tokenizer.from_str(one.model.decode())
    assert plain.encode(TEXT[0]).ids == one.encode(TEXT[0]).tolist()


def test_runs_of_spaces_that_are_added_tokens_are_text():
    description = copy.deepcopy(BYTE_LEVEL)
    size = len(description["model"]["vocab"])
    description["added_tokens"] += [
        {"id": size, "content": "    ", "special": False},
        {"id": size + 1, "content": "<tool_call>", "special": False},
    ]
    tokenizer = made(description)
    assert tokenizer.encode("    x").tolist()[0] == size
    assert tokenizer.special_ids["<tool_call>"] == size + 1
    for text in ("     x<tool_call>", TEXT[0]):
        check(tokenizer, text)


def test_merges_never_spell_a_command_or_a_byte():
    description = fast_tokenizers.byte_fallback()
    vocab, merges = description["model"]["vocab"], description["model"]["merges"]
    for pair in ("< 0", "<0 x", "<0x 4", "<0x4 1", "<0x41 >", "< s", "<s >"):
        merges.append(pair)
        vocab.setdefault(pair.replace(" ", ""), len(vocab))
    description["model"]["ignore_merges"] = True
    check(made(description), "<0x41> <s> 0x41")


def test_nfc_and_prefixes_are_left_out():
    description = {**BYTE_LEVEL, "normalizer": {"type": "NFC"}}
    description["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True}
    check(made(description), "e\u0301 x")


_FORKS = """
import os
from tests.data_pipeline.text.tokenizers.test_byte_pair_model import KINDS, TEXT
KINDS[0].encode_batch(TEXT)
child = os.fork()
if child == 0:
    KINDS[0].encode(TEXT[0])
    os._exit(0)
raise SystemExit(os.waitpid(child, 0)[1])
"""


def test_no_thread_is_started_that_a_fork_would_miss():
    """In a process of its own: whatever else ran here may have threads."""
    run = [sys.executable, "-c", _FORKS]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fork" not in done.stderr


def _changed(path: str, value: object, description: dict = BYTE_LEVEL) -> dict:
    changed = copy.deepcopy(description)
    *parents, last = path.split("/")
    at = changed
    for name in parents:
        at = at[name]
    at[last] = value
    return changed


VOCAB = BYTE_LEVEL["model"]["vocab"]


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ({"model": 7}, "no object 'model'"),
        (_changed("model/type", "WordPiece"), "a WordPiece tokenizer"),
        (_changed("model/type", "Unigram"), r"a Unigram tokenizer.*\.model"),
        (_changed("model/vocab", [["a", 1]]), "no object 'vocab'"),
        (_changed("model/vocab", VOCAB | {"new": 3}), "not each of 0 to"),
        (_changed("model/vocab", VOCAB | {"new": -1}), "not each of 0 to"),
        (_changed("model/vocab", VOCAB | {"new": 10**9}), "not each of 0 to"),
        (_changed("model/vocab", VOCAB | {"new": "7"}), "not each of 0 to"),
        (_changed("model/vocab", VOCAB | {"\ud800": len(VOCAB)}), "no text"),
        (_changed("model/merges", [["a", "zzz"]]), "token that it has not"),
        (_changed("model/merges", ["abc"]), "merge 'abc' is malformed"),
        (_changed("model/merges", {"a": 1}), "malformed"),
        (_changed("model/continuing_subword_prefix", "##"), "continuing_subword"),
        (_changed("model/end_of_word_suffix", "</w>"), "end_of_word_suffix '</w>'"),
        (_changed("model/byte_fallback", False, BYTE_FALLBACK), "neither"),
        (_changed("pre_tokenizer", None), "neither a byte-level"),
        (_changed("pre_tokenizer", {"type": "Whitespace"}), "Whitespace is none"),
        (_changed("pre_tokenizer", {"type": ["x"]}), "is none that"),
        (_changed("pre_tokenizer", 7), "pre_tokenizer is malformed"),
        (_changed("normalizer", {"type": "Lowercase"}), "'?Lowercase'? changes text"),
        (_changed("normalizer", {"type": "NFKC"}), "NFKC changes text"),
        (_changed("normalizer", "x"), "normalizer x changes"),
        (_changed("added_tokens", {"a": 1}), "added_tokens are malformed"),
        (_changed("added_tokens", [{"id": 0}]), "added_tokens are malformed"),
        (_changed("added_tokens", [{"id": 9, "content": "!"}]), "has two ids"),
        (_changed("retro_jax", {"chat_template": "\ud800"}), "not a tokenizer.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_malformed_or_loses_text_is_refused_in_one_line(description, says):
    text = json.dumps(description).encode()
    with pytest.raises(ValueError, match=says) as error:
        Tokenizer(text, "it")
    assert str(error.value).startswith("it: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [b"{", b'{"a":' * 100_000, b"{\xff}", b'{"model": 1e999}', b"{}"],
    ids=["cut", "deep", "binary", "number", "empty"],
)
def test_what_is_no_json_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="not a tokenizer.json") as error:
        Tokenizer(text, "it")
    assert "\n" not in str(error.value)
