"""What an evaluation has found besides its conditions, claim by claim."""

import math

import pytest

from experiments.report import claims, findings


def _gain(value):
    return {"minus_off": value, "minus_off_interval": [value - 0.1, value + 0.1]}


_ON = {"off": _gain(0.0), "on": _gain(-0.2)}
_RESULTS = {
    "conditions": {**_ON, "oracle": _gain(-0.7)},
    "by_longest_run": [
        {"from_tokens": 0, "below_tokens": 8, "conditions": {"on": _gain(-0.1)}},
        {"from_tokens": 8, "below_tokens": None, "conditions": _ON},
    ],
    "by_overlap": [
        {
            "at_most": 0.125,
            "conditions": {"off": _gain(0.0), "on": _gain(-0.05) | {"gain_kept": 0.25}},
        },
        {"at_most": 0.5, "conditions": {"on": _gain(math.nan) | {"gain_kept": None}}},
    ],
    "prompt": {
        "conditions": {**_ON, "prompt": _gain(-0.4)},
        "flops_of_chunk": {"prompt": 60e9, "kept": 0.9e9},
    },
    "facts": {
        "stated": 33,
        "intervals": {
            "on": {"mean": 0.625, "interval": [0.5, 0.7], "questions": 33},
            "edited": {"mean": 0.5, "interval": None, "questions": 33},
            "before": None,
        },
        "attribution": {
            "most_attention_is_true": {"mean": 0.9, "interval": [0.8, 1.0]},
            "rank_correlation": None,
            "passages": 4.0,
            "by_chance": 0.25,
        },
    },
    "neighbours": [{"neighbours": 4, **_gain(-0.3)}],
    "database_shares": [{"share": 0.1, "chunks": 5, **_gain(-0.01)}],
}


@pytest.mark.parametrize(
    ("claim", "label", "shown", "interval"),
    [
        ("leakage", "on, 0 to 7 tokens in a row shared", "−0.1000", [-0.2, 0.0]),
        ("leakage", "on, 8 and more tokens in a row shared", "−0.2000", [-0.3, -0.1]),
        ("leakage", "on, at most 12.5 % shared", "−0.0500", [-0.15, 0.05]),
        ("leakage", "on, at most 12.5 % shared: part of the whole gain", "25 %", None),
        ("leakage", "the true text as a passage (a canary)", "−0.7000", [-0.8, -0.6]),
        ("prompt", "in the prompt", "−0.4000", [-0.5, -0.3]),
        ("prompt", "part of the prompt's gain", "50 %", None),
        (
            "prompt",
            "GFLOP for the passages of a chunk, in the prompt",
            "60.00",
            None,
        ),
        ("questions", "right, with passages", "62 %", [0.5, 0.7]),
        ("updates", "right, with passages", "62 %", [0.5, 0.7]),
        ("updates", "the new number, once the documents had changed", "50 %", None),
        ("questions", "questions whose answer was read", "33.00", None),
        (
            "attribution",
            "most attention on a passage that states the answer",
            "90 %",
            [0.8, 1.0],
        ),
        (
            "attribution",
            "a passage that states the answer, by chance",
            "25 %",
            None,
        ),
        ("database_size", "neighbours: 4", "−0.3000", [-0.4, -0.2]),
        ("database_size", "10.0 % of the database", "−0.0100", [-0.11, 0.09]),
    ],
)
def test_each_number_has_its_claim_its_name_and_its_interval(
    claim, label, shown, interval
):
    plain = str.maketrans("\N{NO-BREAK SPACE}", " ")
    (found,) = (
        each
        for each in findings.of_results(_RESULTS)
        if each.claim == claim and each.label.translate(plain) == label
    )
    assert findings.shown(found.kind, found.value).translate(plain) == shown
    if interval is None:
        assert found.interval is None
    else:
        assert found.interval == pytest.approx(interval)


def test_what_was_not_measured_is_no_finding():
    assert findings.of_results({}) == []
    assert findings.of_results({"conditions": _ON, "facts": {"stated": 0}}) == []
    found = findings.of_results(_RESULTS)
    assert all(math.isfinite(each.value) for each in found)
    assert not [each for each in found if each.label.startswith("right, before")]


def test_a_label_is_one_of_a_claim_that_there_is():
    found = findings.of_results(_RESULTS)
    assert len({(each.claim, each.label) for each in found}) == len(found)
    assert {each.claim for each in found} <= {each.name for each in claims.CLAIMS}
