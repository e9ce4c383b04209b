"""What is said of a retrofit holds for its numbers, whichever way they turn out."""

import math

import pytest

from experiments.report import retrofit
from tests import run_files
from tests.run_files import condition


def test_the_summary_tells_the_base_the_start_the_bar_and_the_facts():
    base, start, bar, facts = retrofit.summary(run_files.retrofit_results())
    assert "the pretrained decoder itself, bit for bit" in base and "0.9500" in base
    assert "Before any training" in start
    assert "lower bits per byte by 0.0700 (95 % interval −0.0840 to −0.0560)" in start
    assert "by 0.2000" in bar and "by 0.1600" in bar
    assert bar.endswith("which is 80\N{NO-BREAK SPACE}% of the prompt's gain.")
    assert facts.startswith("Of 60 questions")
    for share in ("5", "65", "60"):
        assert f"{share}\N{NO-BREAK SPACE}%" in facts


def test_a_decoder_that_was_trained_as_well_is_not_called_the_same():
    found = run_files.retrofit_results(init_from={"freeze": False})
    assert "is not the pretrained decoder" in retrofit.summary(found)[0]


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((-0.2, 0.1), "have no effect that can be shown"),
        ((0.01, 0.2), "raise bits per byte by"),
        ((math.nan, math.nan), "without an interval"),
    ],
)
def test_no_share_is_said_where_the_gain_is_not_sure(ends, said):
    found = run_files.retrofit_results()
    bits = 0.9 if ends[0] > 0 else 0.7
    found["prompt"]["conditions"]["on"] = condition(bits, off=0.8, ends=ends)
    bar = retrofit.summary(found)[2]
    assert said in bar and "of the prompt's gain" not in bar and "nan" not in bar
    on = next(row for row in retrofit.beside_prompt(found).rows if row[0] == "on")
    assert on[-1] == ""


def test_beside_the_prompt_each_condition_has_its_share():
    section = retrofit.beside_prompt(_found())
    rows = {row[0]: row for row in section.rows}
    conditions = ["off", "on, untrained", "on", "random", "random, all read"]
    assert list(rows) == [*conditions, "in the prompt"]
    assert "60.0 GFLOP in the prompt" in section.sentences[0]
    assert "0.7 GFLOP, and 40.0 GFLOP if" in section.sentences[0]
    assert "however far they are" in section.sentences[0]
    assert rows["on"][1:4] == ("0.6400", "−0.1600", "−0.1920 to −0.1280")
    assert rows["on, untrained"][-1] == "30\N{NO-BREAK SPACE}%"
    assert rows["random"][-1] == "" and rows["off"][2:4] == ("0", "by definition")


def _found():
    return run_files.retrofit_results()


def test_gains_stand_in_the_bins_of_overlap():
    section = retrofit.copied(_found())
    assert [row[:6] for row in section.rows] == [
        ("0 to 7", "1,200", "1.0000", "0.9600", "−0.0400", "−0.0500 to −0.0300"),
        ("8 to 15", "1,208", "1.0000", "0.8800", "−0.1200", "−0.1440 to −0.0960"),
        ("16 and more", "1,216", "1.0000", "0.5000", "−0.5000", "−0.6000 to −0.4000"),
    ]
    assert len(section.header) == len(section.rows[0])
    assert "Not all of the gain is copying" in section.sentences[0]
    assert "more where there is more to copy" in section.sentences[0]


@pytest.mark.parametrize(
    ("unclear", "said"),
    [
        ([0], "As far as can be shown the gain is copying"),
        ([0, 1, 2], "Nowhere can a gain be shown"),
        ([1, 2], "some is there where little is shared."),
    ],
)
def test_what_is_copied_is_said_by_the_intervals(unclear, said):
    found = _found()
    for place in unclear:
        of_bin = found["by_longest_run"][place]["conditions"]
        of_bin["on"] = condition(0.9, off=1.0, ends=(-0.2, 0.01))
    assert said in retrofit.copied(found).sentences[0]


def test_bins_without_chunks_are_left_out():
    found = _found()
    for entry in found["by_longest_run"][:2]:
        entry.update(chunks=0, conditions={})
    section = retrofit.copied(found)
    assert len(section.rows) == 1 and "No chunk has little" in section.sentences[0]
    found["by_longest_run"][2].update(chunks=0, conditions={})
    assert retrofit.copied(found) is None


def test_answers_are_counted_and_none_stated_is_said():
    section = retrofit.questions(_found())
    assert [row[1] for row in section.rows] == [
        *("3 of 60", "0 of 60", "39 of 60", "42 of 60", "36 of 60", "10 of 40")
    ]
    assert "Nothing was trained in between" in section.sentences[0]
    none = {"asked": 5, "stated": 0, "right": {}}
    section = retrofit.questions(run_files.retrofit_results(facts=none))
    assert section.sentences[0].endswith("None was.") and not section.rows
    assert retrofit.questions(run_files.results()) is None
    assert len(retrofit.summary(run_files.retrofit_results(facts=none))) == 3


def test_limits_say_what_is_read_and_what_was_tried():
    section = retrofit.limits(run_files.LIMITS, {"max_distance": 0.0})
    assert "at most 0.900" in section.sentences[0]
    assert "75\N{NO-BREAK SPACE}% of the chunks" in section.sentences[0]
    assert section.header[1:] == ("≥ 1 token", "≥ 8 tokens")
    assert [row[0] for row in section.rows] == [
        "none is read",
        "up to 0.500",
        "up to 0.900",
    ]
    assert section.rows[2] == ("up to 0.900", "0.9100", "0.9100")
    nothing = run_files.LIMITS | {"max_distance": -1.0}
    assert retrofit.limits(nothing, {}).sentences[0].startswith("No passage is read")
    assert "no limit was chosen" in retrofit.limits({}, {}).sentences[0]
    by_hand = retrofit.limits(run_files.LIMITS, {"max_distance": 0.7})
    assert "evaluation.max_distance = 0.7" in by_hand.sentences[0] and not by_hand.rows


def test_heads_that_began_open_are_counted():
    (said,) = retrofit.heads(_found()).sentences
    assert "layers 18, 20, counted from 1" in said
    assert "3 gates of 6 began open" in said
    unknown = {"2": {"before": None, "after": [0.5]}}
    (said,) = retrofit.heads(run_files.retrofit_results(gates=unknown)).sentences
    assert "in layer 2," in said and "began open" not in said


def test_a_run_whose_limits_were_not_chosen_says_so():
    for chosen in ({}, {"step": 3}):
        section = retrofit.limits(chosen, {"max_distance": 0.0, "least_tokens": 0})
        assert "no limit was chosen" in section.sentences[0]
