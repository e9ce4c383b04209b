"""What a sweep has found, over seeds: how much text each kind of passages saves, and how surely.

A variant is all that units have in common but their seed. Its seeds are a sample: the interval
over seeds is Student's, of the mean. The held-out documents are another: the interval over
documents is a bootstrap of sums that are means over seeds. Neither knows of the other.

Each variant stands beside the first one of the sweep, too: on the same seeds and documents.

Letters here: D documents, S seeds, X resamples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.storage.files import read_json
from experiments.launching import sweeps
from experiments.launching.work_units import Unit
from experiments.report import findings
from experiments.report.findings import Finding

_OFF, _ON = "off", "on"
_NUM_RESAMPLES = 2000


class Measured(NamedTuple):
    """What a unit has measured."""

    unit: str
    seed: str  # of its point; '' if the sweep has none
    conditions: Mapping[str, Mapping]
    # bits in each condition and 'bytes' of each document; none where they were not kept
    documents: Mapping[str, Mapping[str, float]]
    findings: Sequence[Finding] = ()


def summary(units: Sequence[Unit]) -> dict:
    """Each variant's conditions, and the variant beside the first one, as JSON."""
    by_variant: dict[str, list[Measured]] = {}
    for unit in units:
        results = read_json(unit.folder / "evaluation" / "results.json") or {}
        conditions = results.get("conditions")
        if unit.is_finished and isinstance(conditions, dict):
            variant = sweeps.label(sweeps.without_seed(unit.point))
            seed = unit.point.get(sweeps.SEED, "")
            documents = _documents(results.get("by_document") or {})
            of_unit = findings.of_results(results)
            found = Measured(unit.name, seed, conditions, documents, of_unit)
            by_variant.setdefault(variant, []).append(found)
    first = next(iter(by_variant.values()), [])
    return {
        variant: _of_variant(found) | _beside(found, first)
        for variant, found in by_variant.items()
    }


def _documents(by_document: Mapping) -> dict[str, dict[str, float]]:
    """Sums by document, of the columns in which an evaluation keeps them."""
    found: dict[str, dict[str, float]] = {}
    columns = {"bytes": by_document.get("bytes", ()), **by_document.get("bits", {})}
    for name, values in columns.items():
        names = by_document.get("documents", ())
        for document, value in zip(names, values, strict=True):
            found.setdefault(document, {})[name] = value
    return found


def _of_variant(found: Sequence[Measured]) -> dict:
    names = dict.fromkeys(name for each in found for name in each.conditions)
    having = {
        name: [each for each in found if name in each.conditions] for name in names
    }
    return {
        "units": [each.unit for each in found],
        "conditions": {name: _over_seeds(name, having[name]) for name in names},
        "findings": _findings(found),
    }


def _findings(found: Sequence[Measured]) -> list[dict]:
    """What else was found, over the seeds that have found it, in the first one's order."""
    named: dict[tuple[str, str], list[Finding]] = {}
    for each in found:
        for finding in each.findings:
            named.setdefault((finding.claim, finding.label), []).append(finding)
    made = []
    for (claim, label), of_seeds in named.items():
        values = [finding.value for finding in of_seeds]
        ends = interval(values)
        if ends and of_seeds[0].kind == findings.SHARE:
            ends = [max(ends[0], 0.0), min(ends[1], 1.0)]
        made.append(
            {
                "claim": claim,
                "label": label,
                "kind": of_seeds[0].kind,
                "seeds": len(values),
                "mean": sum(values) / len(values),
                "interval": ends,
                "of_seeds": values,
            }
        )
    return made


def _over_seeds(name: str, found: Sequence[Measured]) -> dict:
    differences = [each.conditions[name]["minus_off"] for each in found]
    absolute = [each.conditions[name]["bits_per_byte"] for each in found]
    made = {
        "seeds": len(found),
        "bits_per_byte": sum(absolute) / len(found),
        "bits_per_byte_interval": interval(absolute),
    }
    if name == _OFF:
        return made
    of_documents = documents_interval(found, found, name, _OFF)
    if of_documents is None and len(found) == 1:
        of_documents = found[0].conditions[name].get("minus_off_interval")
    return made | {
        "minus_off": sum(differences) / len(found),
        "minus_off_interval": interval(differences),
        "minus_off_documents_interval": of_documents,
        "minus_off_of_seeds": differences,
        "share_below_off": sum(value < 0 for value in differences) / len(found),
    }


def _beside(found: Sequence[Measured], first: Sequence[Measured]) -> dict:
    """The bits per byte of a variant, as it reads, minus those of the first variant."""
    partner = {each.seed: each for each in first}
    pairs = [(each, partner[each.seed]) for each in found if each.seed in partner]
    if not pairs or found is first:
        return {}
    own, other = _reading(found), _reading(first)
    differences = [
        one.conditions[own]["bits_per_byte"] - two.conditions[other]["bits_per_byte"]
        for one, two in pairs
    ]
    ones, twos = zip(*pairs, strict=True)
    return {
        "minus_first": {
            "bits_per_byte": sum(differences) / len(differences),
            "interval": interval(differences),
            "documents_interval": documents_interval(ones, twos, own, other),
            "of_seeds": differences,
        }
    }


def _reading(found: Sequence[Measured]) -> str:
    """The condition in which a variant is what it is: a baseline reads nothing."""
    return _ON if all(_ON in each.conditions for each in found) else _OFF


def documents_interval(
    ones: Sequence[Measured], twos: Sequence[Measured], one: str, two: str
) -> list[float] | None:
    """The 95 % bootstrap interval over documents of a difference of bits per byte.

    Args:
        ones: units, of which the condition `one` counts, and `twos` theirs to compare.
    Returns:
        None if sums by document were not kept, or less than two are common to all.
    """
    measured = [(each, one) for each in ones] + [(each, two) for each in twos]
    common = set.intersection(
        *(
            {name for name, sums in each.documents.items() if condition in sums}
            for each, condition in measured
        )
    )
    if len(common) < 2:
        return None
    names = sorted(common)

    def sums(found: Sequence[Measured], column: str) -> np.ndarray:
        rows_SD = [[each.documents[name][column] for name in names] for each in found]
        return np.mean(rows_SD, axis=0)

    rng = np.random.default_rng(0)
    share = np.full(len(names), 1 / len(names))
    counts_XD = rng.multinomial(len(names), share, _NUM_RESAMPLES)
    values = []
    for found, condition in ((ones, one), (twos, two)):
        bits_D, bytes_D = sums(found, condition), sums(found, "bytes")
        values.append((counts_XD @ bits_D) / np.maximum(counts_XD @ bytes_D, 1e-9))
    return np.percentile(values[0] - values[1], (2.5, 97.5)).tolist()


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
