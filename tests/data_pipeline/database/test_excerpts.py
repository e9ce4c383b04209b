"""Excerpts begin and end at borders, keep their lines and mark the match."""

import hypothesis
from hypothesis import strategies

from data_pipeline.database import excerpts


def made(before, match, after, starts=True, ends=True):
    parts = (part.encode() for part in (before, match, after))
    return excerpts.excerpt_of(*parts, starts=starts, ends=ends)


def test_words_that_the_match_cuts_belong_to_it():
    one = made("One day. The d", "ay was long and du", "ck went. So it en", ends=False)
    assert one.match == "day was long and duck"
    assert one.text == "One day. The day was long and duck went."
    assert not one.cut_before and not one.cut_after


def test_a_tail_is_shown_with_what_stands_before_it():
    one = made("first line\n" + "x" * 90 + "\nPay with the ", "refund.", "")
    assert one.text == "x" * 90 + "\nPay with the refund."
    assert one.match == "refund."


def test_text_without_borders_is_cut_at_words_and_says_so():
    one = made("ne two three ", "four five", " six sev", starts=False, ends=False)
    assert one.text == "two three four five six"
    assert one.cut_before and one.cut_after
    assert one.lines() == " > ... two three four five six ..."


def test_characters_that_ends_cut_are_whole_or_left_out():
    euro = "\u20ac".encode()
    one = excerpts.excerpt_of(euro[1:], b"a " + euro[:1], euro[1:] + b" b " + euro[:2],
                              starts=False, ends=True)  # fmt: skip
    assert "\ufffd" not in one.text and "a \u20ac b" in one.text


def test_lines_and_indentation_stay_and_lines_of_the_match_are_marked():
    one = made("def f():\n    a\n", "    b\n    c", "\n\n\n    d\n")
    assert one.lines().splitlines() == [
        "   def f():",
        "       a",
        " >     b",
        " >     c",
        "",
        "       d",
    ]


@hypothesis.given(*[strategies.text("ab \n.\u20ac\u3002", max_size=30)] * 3)
def test_no_text_of_a_whole_document_is_lost_at_its_borders(before, match, after):
    one = made(before, match, after)
    assert one.text in before + match + after
    assert match.strip() in one.text
    one.lines()


def test_an_excerpt_of_a_database_stands_in_its_document(tiny_database, texts):
    for chunk_id in range(0, len(tiny_database.snapshot.chunks()), 7):
        found = tiny_database.found(chunk_id)
        one = excerpts.excerpt_at(tiny_database.snapshot, chunk_id)
        assert one.text in texts[found.document_id]
        assert excerpts.excerpt_of_found(found).text.strip() in texts[found.document_id]
