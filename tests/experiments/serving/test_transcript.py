"""What of a text may be shown, whatever its tokens are."""

import random

import pytest

from experiments.serving.transcript import Transcript, token_text
from tests import served_model

TOKENIZER = served_model.tokenizer()
TEXT = "caf\u00e9 \U0001f99c and aabaab and aabaac \u4e2d\u6587 end"


def _shown(stops, sizes, text=TEXT) -> tuple[list[str], Transcript]:
    tokens = TOKENIZER.encode(text)
    made, parts, place = Transcript(TOKENIZER, stops), [], 0
    for size in sizes:
        parts.append(made.add(tokens[place : place + size]))
        place += size
    parts.append(made.add(tokens[place:], is_last=True))
    return parts, made


@pytest.mark.parametrize(
    "stops",
    [(), ("aabaac",), ("b", "aabaa"), ("\U0001f99c",), ("zzz",), (TEXT,), ("d",)],
)
def test_however_a_text_is_cut_the_same_is_shown(stops):
    ends = [(TEXT.find(stop) + len(stop), stop) for stop in stops if stop in TEXT]
    end = TEXT.find(min(ends)[1]) if ends else len(TEXT)
    rng = random.Random(0)
    for _ in range(60):
        sizes = [rng.randint(0, 5) for _ in range(rng.randint(0, 30))]
        parts, made = _shown(stops, sizes)
        assert "".join(parts) == made.text == TEXT[:end]
        assert made.stopped == (end < len(TEXT) or TEXT in stops)


def test_a_part_of_a_character_at_the_end_is_left_out():
    tokens = TOKENIZER.encode("ab\U0001f99c")
    made = Transcript(TOKENIZER)
    assert made.add(tokens[:-1], is_last=True) == "ab"


def test_bytes_that_are_no_text_are_shown_as_that():
    (byte,) = [t for t in range(300) if TOKENIZER.decode_bytes([t]) == b"\xff"]
    assert Transcript(TOKENIZER).add([byte, *TOKENIZER.encode("a")]) == "\ufffda"


def test_a_stop_string_in_the_prompt_ends_nothing():
    made = Transcript(TOKENIZER, ("ab",))
    made.echo(TOKENIZER.encode("xaba"))
    assert made.text == "xaba"
    assert made.add(TOKENIZER.encode("b!"), is_last=True) == "b!"
    assert made.add(TOKENIZER.encode("ab!")) == ""


def test_tokens_know_where_they_begin_and_which_of_them_are_left():
    text = "x caf\u00e9 stop here"
    _, made = _shown(("stop",), [3, 3], text)
    kept = made.starts[: made.num_tokens]
    assert kept[0] == 0 and kept == sorted(kept) and max(kept) < len("x caf\u00e9 ")
    assert made.starts[made.num_tokens] == len("x caf\u00e9 ")


def test_every_token_has_a_name_of_its_own():
    names = [token_text(TOKENIZER, token) for token in range(TOKENIZER.vocab_size)]
    assert len(set(names)) == len(names)
    assert names[TOKENIZER.eod_id] == "<|endoftext|>"
    assert "bytes:\\xff" in names and "a" in names
