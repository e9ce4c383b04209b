"""What an evaluation has found besides its conditions: numbers under names, by claim.

A launch has them of each seed, and the evidence shows what they have in common.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from experiments.report import verdict

# Kinds of numbers: bits per byte minus those with retrieval off; a share of all, in 0..1; a
# part of another gain, which may be more than all of it; any other.
GAIN, SHARE, PART, NUMBER = "gain", "share", "part", "number"
_QUESTIONS = {  # condition -> claim, label
    "off": ("questions", "right, no passages"),
    "prompt": ("questions", "right, the passages in the prompt"),
    "sentence": ("questions", "right, asked in other words"),
    "before": ("updates", "right, before the documents were in the database"),
    "edited": ("updates", "the new number, once the documents had changed"),
}
_OF_BOTH = ("questions", "updates")  # what is right with the documents in the database
_BY_RUN = ("untrained", "on", "random")  # the others show no more there
_ATTRIBUTION = {
    "most_attention_is_true": (
        "most attention on a passage that states the answer",
        SHARE,
    ),
    "most_effect_is_true": ("most effect by a passage that states the answer", SHARE),
    "top_agreement": ("most attention and most effect on the same passage", SHARE),
    "rank_correlation": ("rank correlation of attention and effect", NUMBER),
}


class Finding(NamedTuple):
    """A number with its place.

    Attributes:
        claim: whose section shows it.
        label: what it is of; one of a claim.
        kind: GAIN, SHARE, PART or NUMBER.
        interval: of 95 % over documents, where there is one.
    """

    claim: str
    label: str
    kind: str
    value: float
    interval: Sequence[float] | None = None


def shown(kind: str, value: float) -> str:
    """Writes a value of a kind for people: '−0.0100', '62 %' or '0.85'."""
    if kind in (SHARE, PART):
        return verdict.percent(value)
    return verdict.signed(value) if kind == GAIN else verdict.number(value, 2)


def of_results(results: Mapping) -> list[Finding]:
    """All that the results of an evaluation hold; nothing of what was not measured."""
    made = (_leakage, _prompt, _facts, _database_size)
    return [
        each
        for findings in made
        for each in findings(results)
        if math.isfinite(each.value)
    ]


def _leakage(results: Mapping) -> Iterator[Finding]:
    for part in results.get("by_longest_run") or ():
        below = part.get("below_tokens")
        run = f"{part['from_tokens']} " + (f"to {below - 1}" if below else "and more")
        for name in verdict.in_order(part["conditions"]):
            if name != "off":
                label = (
                    f"{verdict.LABELS.get(name, name)}, {run} tokens in a row shared"
                )
                yield _gain("leakage", label, part["conditions"][name])
    for part in results.get("by_overlap") or ():
        on = part["conditions"].get("on")
        if on is None:
            continue
        label = f"on, at most {verdict.percent(part['at_most'], 1)} shared"
        yield _gain("leakage", label, on)
        if on.get("gain_kept") is not None:
            kept = f"{label}: part of the whole gain"
            yield Finding("leakage", kept, PART, on["gain_kept"])
    canary = (results.get("conditions") or {}).get("oracle")
    if canary:
        yield _gain("leakage", "the true text as a passage (a canary)", canary)


def _prompt(results: Mapping) -> Iterator[Finding]:
    measured = results.get("prompt") or {}
    conditions = measured.get("conditions") or {}
    for name in conditions:
        if name != "off":
            yield _gain("prompt", verdict.LABELS.get(name, name), conditions[name])
    if {"on", "prompt"} <= conditions.keys() and conditions["prompt"]["minus_off"] < 0:
        share = conditions["on"]["minus_off"] / conditions["prompt"]["minus_off"]
        yield Finding("prompt", "part of the prompt's gain", PART, share)
    for name, flops in (measured.get("flops_of_chunk") or {}).items():
        how = {"prompt": "in the prompt", "anew": "read anew", "kept": "read before"}
        label = f"GFLOP for the passages of a chunk, {how.get(name, name)}"
        yield Finding("prompt", label, NUMBER, flops / 1e9)


def _facts(results: Mapping) -> Iterator[Finding]:
    facts = results.get("facts") or {}
    counted = facts.get("intervals") or {}
    right = {claim: [("on", "right, with passages")] for claim in _OF_BOTH}
    for name, (claim, label) in _QUESTIONS.items():
        right.setdefault(claim, []).append((name, label))
    for claim, rows in right.items():
        for name, label in rows:
            if counted.get(name):
                yield _counted(claim, label, SHARE, counted[name])
    if facts.get("stated"):
        stated = float(facts["stated"])
        yield Finding("questions", "questions whose answer was read", NUMBER, stated)
    attribution = facts.get("attribution") or {}
    for name, (label, kind) in _ATTRIBUTION.items():
        if attribution.get(name):
            yield _counted("attribution", label, kind, attribution[name])
    if attribution.get("passages"):
        label = "passages of a question"
        yield Finding("attribution", label, NUMBER, attribution["passages"])
        by_chance = "a passage that states the answer, by chance"
        yield Finding("attribution", by_chance, SHARE, attribution["by_chance"])


def _database_size(results: Mapping) -> Iterator[Finding]:
    for part in results.get("database_shares") or ():
        label = f"{verdict.percent(part['share'], 1)} of the database"
        yield _gain("database_size", label, part)
    for part in results.get("neighbours") or ():
        yield _gain("database_size", f"neighbours: {part['neighbours']}", part)


def _gain(claim: str, label: str, values: Mapping) -> Finding:
    interval = values.get("minus_off_interval")
    return Finding(claim, label, GAIN, values["minus_off"], interval)


def _counted(claim: str, label: str, kind: str, values: Mapping) -> Finding:
    return Finding(claim, label, kind, values["mean"], values.get("interval"))
