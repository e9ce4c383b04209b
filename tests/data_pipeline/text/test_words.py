"""Words of every script, as one would count them."""

import pytest

from data_pipeline.text import words as of_text
from data_pipeline.text.words import rest_of_word, search_terms, words, words_in_blocks


def test_words_that_are_written_apart():
    text = "Foo_Bar(x1, 3.14) ÄÖ don't\0NUL 한국어 ＡＢ"
    wanted = ["foo_bar", "x1", "3", "14", "äö", "don", "t", "nul"]
    wanted += ["한국어", "ab"]
    assert words(text) == search_terms(text) == wanted
    assert words("…!") == search_terms("…!") == words("") == []


def test_characters_are_words_where_none_are_written_apart():
    assert words("GPT語言、模") == ["gpt", "語", "言", "模"]
    assert words("ดีค") == ["ด", "ี", "ค"]
    wanted = ["語", "言", "模", "語言", "言模", "x"]
    assert search_terms("語言模 x") == wanted


def test_ascii_is_read_as_any_text():
    """The fast way and the general one agree."""
    text = "".join(map(chr, range(128))) + " an_example of 3 words"
    assert words(text) == words(text + " é")[:-1]


@pytest.mark.parametrize("letter", ["w", "語"])
def test_blocks_have_the_words_of_the_whole(letter, monkeypatch):
    monkeypatch.setattr(of_text, "_BLOCK_CHARS", 7)
    text = " ".join(letter * n for n in range(1, 12)) + "é end"
    assert [word for block in words_in_blocks(text) for word in block] == words(text)


@pytest.mark.parametrize(
    ("text", "following", "rest"),
    [
        ("to be cont", "inued here", "inued"),
        ("a sentence.", "Another", ""),
        ("a word ", "another", ""),
        ("語言", "模型", "模"),
        ("", "x", ""),
    ],
)
def test_the_rest_of_a_word(text, following, rest):
    assert rest_of_word(text, following) == rest
