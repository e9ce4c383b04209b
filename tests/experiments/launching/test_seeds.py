"""What a sweep has found over its seeds: means, Student's intervals and signs."""

import math
import statistics

import pytest

from data_pipeline.storage.files import write_json
from experiments.launching import seeds
from tests.experiments.launching.units import unit

_GAINS = [-0.02, -0.01, 0.01, -0.03]


def _evaluated(out, number, gain, *, state="finished", **point):
    made = unit(out, number=number, **point)
    made.record(state=state)
    conditions = {
        "off": {"bits_per_byte": 1.5, "minus_off": 0.0},
        "on": {"bits_per_byte": 1.5 + gain, "minus_off": gain},
    }
    (made.folder / "evaluation").mkdir()
    write_json(made.folder / "evaluation" / "results.json", {"conditions": conditions})
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
