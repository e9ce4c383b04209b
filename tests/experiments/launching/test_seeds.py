"""What a sweep has found over its seeds: means, Student's intervals and signs."""

import math
import statistics

import pytest

from data_pipeline.storage.files import read_json, write_json
from experiments.launching import seeds
from tests.experiments.launching.units import unit

_GAINS = [-0.02, -0.01, 0.01, -0.03]


def _evaluated(out, number, gain, *, state="finished", by_document=None, **point):
    made = unit(out, number=number, **point)
    made.record(state=state)
    conditions = {
        "off": {"bits_per_byte": 1.5, "minus_off": 0.0},
        "on": {"bits_per_byte": 1.5 + gain, "minus_off": gain},
    }
    (made.folder / "evaluation").mkdir()
    results = {"conditions": conditions, "by_document": by_document}
    write_json(made.folder / "evaluation" / "results.json", results)
    return made


def test_mean_interval_and_share_over_the_seeds_of_each_variant(tmp_path):
    units = [
        _evaluated(tmp_path, number, gain, **{"train.seed": str(number)})
        for number, gain in enumerate(_GAINS)
    ]
    units.append(_evaluated(tmp_path, 4, -9.0, state="running", **{"train.seed": "4"}))
    units.append(
        _evaluated(tmp_path, 5, 0.5, **{"train.seed": "0", "train.steps": "3"})
    )
    units.append(unit(tmp_path, number=6))  # not evaluated
    found = seeds.summary(units)
    assert list(found) == ["", "train.steps=3"]
    assert found[""]["units"] == [f"unit-{number:03}" for number in range(4)]
    on = found[""]["conditions"]["on"]
    assert on["seeds"] == 4 and on["share_below_off"] == 0.75
    assert on["minus_off"] == pytest.approx(-0.0125)
    assert on["minus_off_of_seeds"] == _GAINS
    # Of a table: Student's t of 3 degrees of freedom at 97.5 %.
    half = 3.182446 * statistics.stdev(_GAINS) / math.sqrt(4)
    assert on["minus_off_interval"] == pytest.approx([-0.0125 - half, -0.0125 + half])
    assert on["bits_per_byte"] == pytest.approx(1.4875)
    one = found["train.steps=3"]["conditions"]
    assert one["on"]["minus_off_interval"] is None and "minus_off" not in one["off"]


def test_the_table_names_variants_conditions_and_signs(tmp_path):
    units = [
        _evaluated(tmp_path, number, gain, **{"train.seed": str(number)})
        for number, gain in enumerate(_GAINS)
    ]
    first, on = seeds.lines(seeds.summary(units))
    assert first.startswith("all units: ")
    assert on.split()[:2] == ["on", "-0.0125"]
    assert on.endswith("below off in 75% of 4 seeds")
    (_, alone) = seeds.lines(seeds.summary(units[:1]))
    assert "one seed: no interval" in alone and alone.endswith("100% of 1 seed")
    assert seeds.lines(seeds.summary([])) == []


def _documents(*gains):
    """A hundred bytes each, on which 'off' costs two bits a byte."""
    return {
        "documents": [f"document-{number}" for number in range(len(gains))],
        "bytes": [100.0] * len(gains),
        "bits": {
            "off": [200.0] * len(gains),
            "on": [100 * (2 + gain) for gain in gains],
        },
    }


def test_a_variant_stands_beside_the_first_one_of_the_same_seed(tmp_path):
    units = []
    for number, (seed, gain, steps) in enumerate(
        [(0, -0.1, ""), (1, -0.3, ""), (0, -0.05, "3"), (1, -0.2, "3"), (2, 9.0, "3")]
    ):
        point = {"train.seed": str(seed)} | ({"train.steps": steps} if steps else {})
        units.append(_evaluated(tmp_path, number, gain, **point))
    found = seeds.summary(units)
    assert "minus_first" not in found[""]
    beside = found["train.steps=3"]["minus_first"]
    assert beside["of_seeds"] == pytest.approx([0.05, 0.1])  # seed 2 has no partner
    assert beside["bits_per_byte"] == pytest.approx(0.075)
    low, high = beside["interval"]
    assert low < 0.05 and high > 0.1
    assert beside["documents_interval"] is None


def test_the_interval_over_documents_is_of_means_over_seeds(tmp_path):
    units = [
        _evaluated(tmp_path, 0, 0, by_document=_documents(-0.1, 0.0, 0.1)),
        _evaluated(tmp_path, 1, 0, by_document=_documents(0.1, 0.0, -0.1), a="1"),
    ]
    on = seeds.summary(units[:1])[""]["conditions"]["on"]
    low, high = on["minus_off_documents_interval"]
    assert -0.101 < low < 0 < high < 0.101
    # Whoever is measured beside itself differs on no document.
    ones = [
        seeds.Measured("u", "0", {}, seeds._documents(made))
        for made in (_documents(-0.1, 0.0, 0.1), _documents(0.1, 0.0, -0.1))
    ]
    same = seeds.documents_interval(ones, ones, "on", "off")
    assert same == pytest.approx([0, 0], abs=1e-9)
    alone = [seeds.Measured("u", "0", {}, seeds._documents(_documents(1)))]
    assert seeds.documents_interval(alone, alone, "on", "off") is None


def test_a_baseline_is_compared_as_it_reads(tmp_path):
    units = [_evaluated(tmp_path, 0, -0.1), _evaluated(tmp_path, 1, 0, a="1")]
    results = {"conditions": {"off": {"bits_per_byte": 1.6, "minus_off": 0.0}}}
    write_json(units[1].folder / "evaluation" / "results.json", results)
    beside = seeds.summary(units)["a=1"]["minus_first"]
    assert beside["bits_per_byte"] == pytest.approx(0.2)  # off beside on
    assert beside["interval"] is None


def test_what_else_was_found_is_averaged_over_the_seeds_that_found_it(tmp_path):
    units = [
        _evaluated(tmp_path, number, gain, **{"train.seed": str(number)})
        for number, gain in enumerate(_GAINS)
    ]
    for each, share in zip(units[:3], (0.875, 0.75, 0.25), strict=True):
        path = each.folder / "evaluation" / "results.json"
        counted = {"mean": share, "interval": None, "questions": 8}
        facts = {"facts": {"intervals": {"edited": counted}}}
        write_json(path, read_json(path) | facts)
    (found,) = seeds.summary(units)[""]["findings"]
    assert found["claim"] == "updates" and found["kind"] == "share"
    assert found["of_seeds"] == [0.875, 0.75, 0.25] and found["seeds"] == 3
    assert found["mean"] == pytest.approx(0.625)
    # Student's interval, of which there is nothing below 0 nor above 1.
    half = 4.302653 * statistics.stdev(found["of_seeds"]) / math.sqrt(3)
    assert 0.625 - half < 0 and 0.625 + half > 1
    assert found["interval"] == [0.0, 1.0]
