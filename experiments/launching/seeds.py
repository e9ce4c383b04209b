"""What a sweep has found, over seeds: how much text each kind of passages saves, and how surely.

A variant is all that units have in common but their seed. Its seeds are the sample: the
interval is Student's, of the mean over seeds, and does not know how few the held-out
documents are, which the interval of a single run does.
"""

import math
from collections.abc import Sequence

from data_pipeline.storage.files import read_json
from experiments.launching import sweeps
from experiments.launching.work_units import Unit

_OFF = "off"


def summary(units: Sequence[Unit]) -> dict:
    """Mean and 95 % interval of each condition's bits per byte minus off's, as JSON."""
    by_variant: dict[str, list[tuple[str, dict]]] = {}
    for unit in units:
        results = read_json(unit.folder / "evaluation" / "results.json") or {}
        conditions = results.get("conditions")
        if unit.is_finished and isinstance(conditions, dict):
            variant = sweeps.label(sweeps.without_seed(unit.point))
            by_variant.setdefault(variant, []).append((unit.name, conditions))
    return {variant: _of_variant(found) for variant, found in by_variant.items()}


def _of_variant(found: Sequence[tuple[str, dict]]) -> dict:
    names = dict.fromkeys(name for _, conditions in found for name in conditions)
    measured = {
        name: [
            (conditions[name]["minus_off"], conditions[name]["bits_per_byte"])
            for _, conditions in found
            if name in conditions
        ]
        for name in names
    }
    return {
        "units": [unit for unit, _ in found],
        "conditions": {
            name: _over_seeds(name, rows) for name, rows in measured.items()
        },
    }


def _over_seeds(name: str, rows: Sequence[tuple[float, float]]) -> dict:
    differences = [difference for difference, _ in rows]
    absolute = [value for _, value in rows]
    made = {
        "seeds": len(rows),
        "bits_per_byte": sum(absolute) / len(rows),
        "bits_per_byte_interval": interval(absolute),
    }
    if name == _OFF:
        return made
    return made | {
        "minus_off": sum(differences) / len(rows),
        "minus_off_interval": interval(differences),
        "minus_off_of_seeds": differences,
        "share_below_off": sum(value < 0 for value in differences) / len(rows),
    }


def interval(values: Sequence[float]) -> list[float] | None:
    """The 95 % interval of the mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = float(stdtrit(len(values) - 1, 0.975)) * math.sqrt(variance / len(values))
    return [mean - half, mean + half]


def lines(found: dict) -> list[str]:
    """A summary as a table for people."""
    shown = []
    for variant, values in found.items():
        shown.append(f"{variant or 'all units'}: bits per byte minus retrieval off")
        for name, row in values["conditions"].items():
            if name == _OFF:
                continue
            seeds = f"{row['seeds']} seed" + "s" * (row["seeds"] != 1)
            ends = row["minus_off_interval"]
            width = (
                f"[{ends[0]:+.4f}, {ends[1]:+.4f}]" if ends else "one seed: no interval"
            )
            share = f"below off in {row['share_below_off']:.0%}"
            shown.append(
                f"  {name:<12} {row['minus_off']:+.4f}  {width}  {share} of {seeds}"
            )
    return shown
