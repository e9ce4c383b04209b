"""What is measured over a range is told with its intervals, and only if it was measured."""

import math

from experiments.report import curves
from tests import run_files

_ON = {
    "bits_per_byte": 1.8,
    "minus_off": -0.2,
    "minus_off_interval": [-0.3, -0.1],
    "gain_kept": 0.5,
}
_OFF = {"bits_per_byte": 2.0, "minus_off": 0.0, "minus_off_interval": [0.0, 0.0]}
_NONE = {
    "bits_per_byte": math.nan,
    "minus_off": math.nan,
    "minus_off_interval": [math.nan, math.nan],
    "gain_kept": None,
}
_TOLD = ("1.8000", "−0.2000", "−0.3000 to −0.1000")


def test_what_was_not_measured_has_no_part():
    parts = (
        curves.neighbours,
        curves.database_sizes,
        curves.overlap,
        curves.decontaminated,
        curves.words,
    )
    assert [part(run_files.results()) for part in parts] == [None] * 5


def test_neighbours_and_parts_of_a_database():
    found = curves.neighbours({"neighbours": [{"neighbours": 10, **_ON}]})
    assert list(found.rows) == [("10", *_TOLD)]
    shares = [{"share": 0.25, "chunks": 12_345, **_ON}]
    found = curves.database_sizes({"database_shares": shares})
    assert list(found.rows) == [("25.0\N{NO-BREAK SPACE}%", "12,345", *_TOLD)]


def test_overlap_shows_every_condition_and_what_is_left_of_its_gain():
    conditions = {"knn": _ON, "off": _OFF, "on": _ON}
    entries = [
        {"at_most": 0.125, "chunks": 0, "conditions": {}},
        {"at_most": 0.5, "chunks": 7, "conditions": conditions | {"knn": _NONE}},
        {"at_most": 1.0, "chunks": 9, "conditions": conditions},
    ]
    rows = curves.overlap({"by_overlap": entries}).rows
    assert [row[1:3] for row in rows] == [
        *(("7", "on"), ("7", "kNN-LM"), ("9", "on"), ("9", "kNN-LM")),
    ]
    assert rows[0][3:] == (*_TOLD, "50\N{NO-BREAK SPACE}%")
    assert rows[1][3:] == ("n/a", "n/a", "n/a", "n/a")


def test_clean_chunks_say_how_long_a_run_was_looked_for():
    measured = {"gram_tokens": 13, "chunks": 42, "conditions": {"on": _ON}}
    found = curves.decontaminated({"decontaminated": measured})
    assert "The 42 chunks" in found.sentences[0] and "13 tokens" in found.sentences[0]
    assert list(found.rows) == [("on", *_TOLD)]


def test_words_say_what_they_are_counted_on():
    of_on = {
        "perplexity_by_words_scored": 40.0,
        "perplexity_by_words_of_pages": 30.0,
        "bits_per_byte_of_pages": 0.9,
    }
    found = curves.words(
        {
            "per_word": {
                "words_scored": 10,
                "words_of_pages": 12,
                "conditions": {"on": of_on},
            },
            "conditions": {"on": {"perplexity": 12.345}},
        }
    )
    assert list(found.rows) == [("on", "12.35", "40.00", "30.00", "0.9000")]
