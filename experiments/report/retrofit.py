"""What a report says of a pretrained decoder that became a RETRO, from its numbers alone.

Sentences claim a direction only where an interval does not hold zero.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.report.verdict import (
    LABELS,
    ORDER,
    counted,
    effect,
    interval,
    number,
    percent,
    signed,
)

_ORDER = (*ORDER, "random unlimited", "prompt")


class Section(NamedTuple):
    """A part of the page: sentences, and a table whose first cells are its rows' heads."""

    sentences: list[str]
    header: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()


def is_one(results: Mapping) -> bool:
    """Tells whether the run's decoder was pretrained and reads neighbours itself."""
    return "gates" in results


def summary(results: Mapping) -> list[str]:
    """What stands under the headline: each its own claim, with its interval."""
    measured = results["conditions"]
    off = number(measured["off"]["bits_per_byte"])
    frozen = bool((results.get("init_from") or {}).get("freeze"))
    found = []
    if frozen:
        found.append(
            "Retrieval off is the pretrained decoder itself, bit for bit: its own weights "
            f"were not trained ({off} bits per byte)."
        )
    else:
        found.append(
            "Retrieval off is not the pretrained decoder: its own weights were trained "
            f"as well ({off} bits per byte)."
        )
    if "untrained" in measured:
        found.append(
            "Before any training, with cross-attention copied from the decoder's own "
            f"copying heads, {_does(measured['untrained'], 'the passages found')}."
        )
    if results.get("prompt"):
        found.append(_prompt_sentence(results["prompt"]))
    if (results.get("facts") or {}).get("stated"):
        found.append(_facts_sentence(results["facts"]))
    return found


def _does(values: Mapping, what: str) -> str:
    """A clause: what reading does to bits per byte, with its interval."""
    difference = values["minus_off"]
    ends = interval(values["minus_off_interval"], signed)
    match effect(values):
        case "lower":
            return f"{what} lower bits per byte by {number(-difference)} (95 % interval {ends})"
        case "higher":
            return f"{what} raise bits per byte by {number(difference)} (95 % interval {ends})"
        case "unclear":
            return (
                f"{what} have no effect that can be shown ({signed(difference)}, 95 % "
                f"interval {ends})"
            )
    return f"{what} change bits per byte by {signed(difference)}, without an interval"


def _prompt_sentence(beside: Mapping) -> str:
    measured = beside["conditions"]
    in_prompt, on = measured["prompt"], measured["on"]
    said = (
        "The bar is the usual way, the same passages in the decoder's prompt. On the same "
        f"text, {_does(in_prompt, 'passages in the prompt')}, and "
        f"{_does(on, 'those read by cross-attention')}"
    )
    share = gain_share(on, in_prompt)
    if share is not None:
        said += f", which is {percent(share)} of the prompt's gain"
    return f"{said}."


def gain_share(values: Mapping, of: Mapping) -> float | None:
    """A gain as a share of another; None unless both are shown by their intervals."""
    if effect(values) == effect(of) == "lower":
        return values["minus_off"] / of["minus_off"]
    return None


def _facts_sentence(facts: Mapping) -> str:
    right = facts["right"]
    return (
        f"Of {counted(facts['stated'], 'question')} of fact whose answer stands in a passage "
        "that was found, once its document was added to the database, the decoder alone "
        f"answers {percent(right['off'])} right, with passages {percent(right['on'])}; after "
        "the documents were changed to state another number, "
        f"{percent(right['edited'])} of the answers are that number."
    )


def beside_prompt(results: Mapping) -> Section | None:
    """The same passages in the prompt, and each condition on the same text."""
    beside = results.get("prompt")
    if beside is None:
        return None
    measured, rows = beside["conditions"], []
    for name in (name for name in _ORDER if name in measured):
        values = measured[name]
        share = gain_share(values, measured["prompt"])
        rows.append(
            (
                LABELS.get(name, name),
                number(values["bits_per_byte"]),
                *_change(name, values),
                "" if share is None else percent(share),
            )
        )
    sentence = (
        f"Measured on {counted(beside['sequences'], 'sequence')} without their first chunks, "
        "for which nothing is retrieved. In the prompt, the decoder reads the passages in "
        "all of its layers, again for each chunk; cross-attention reads them in a few "
        "layers, from encodings that do not depend on the text and can be kept."
    )
    if "random unlimited" in measured:
        sentence += (
            " Random passages that are “all read” are read however far they are; the "
            "limits of reading leave most of them out."
        )
    if costs := beside.get("flops_of_chunk"):
        sentence += (
            f" For each chunk its passages cost {_gigaflops(costs['prompt'])} in the prompt; "
            f"through cross-attention {_gigaflops(costs['kept'])}, and "
            f"{_gigaflops(costs['anew'])} if they must be encoded first (counted)."
        )
    header = (
        "passages",
        "bits per byte",
        "difference to off",
        "its 95 % interval",
        "share of the prompt’s gain",
    )
    return Section([sentence], header, rows)


def _gigaflops(flops: float) -> str:
    return f"{number(flops / 1e9, 1)} GFLOP"


def _change(name: str, values: Mapping) -> tuple[str, str]:
    if name == "off":
        return "0", "by definition"
    return signed(values["minus_off"]), interval(values["minus_off_interval"], signed)


def bin_name(entry: Mapping) -> str:
    """Writes '0 to 7', '16 and more'."""
    low, end = entry["from_tokens"], entry["below_tokens"]
    return f"{low} and more" if end is None else f"{low} to {end - 1}"


def copied(results: Mapping) -> Section | None:
    """The gain where there is more or less to copy: what is copied and what is not."""
    bins = [entry for entry in results.get("by_longest_run", ()) if entry["chunks"]]
    if not bins or "on" not in bins[0]["conditions"]:
        return None
    beside = [name for name in ("untrained", "random") if name in bins[0]["conditions"]]
    rows = []
    for entry in bins:
        measured = entry["conditions"]
        rows.append(
            (
                bin_name(entry),
                f"{entry['chunks']:,}",
                number(measured["off"]["bits_per_byte"]),
                number(measured["on"]["bits_per_byte"]),
                *_change("on", measured["on"]),
                *(signed(measured[name]["minus_off"]) for name in beside),
            )
        )
    header = (
        "shared run, tokens",
        "chunks",
        "off",
        "on",
        "difference to off",
        "its 95 % interval",
        *(f"difference, {name}" for name in beside),
    )
    return Section([_what_is_copied(bins)], header, rows)


def _what_is_copied(bins: Sequence[Mapping]) -> str:
    """Sentences: what is gained in each bin, and what it tells."""
    gains = [entry["conditions"]["on"] for entry in bins]
    told = ", ".join(
        f"{signed(on['minus_off'])} at {bin_name(entry)}"
        for entry, on in zip(bins, gains, strict=True)
    )
    said = (
        "Chunks by their longest run of tokens that also stands, word for word, in a "
        f"passage found for them. Retrieval makes a difference of {told} tokens. "
    )
    if bins[0]["from_tokens"]:  # no chunk shares little
        return said + "No chunk has little in common with its passages."
    if effect(gains[0]) == "lower":
        larger = any(
            on["minus_off"] < gains[0]["minus_off"] and effect(on) == "lower"
            for on in gains[1:]
        )
        said += "Not all of the gain is copying: some is there where little is shared"
        return said + (", though more where there is more to copy." if larger else ".")
    if any(effect(on) == "lower" for on in gains[1:]):
        return said + (
            "As far as can be shown the gain is copying: where little is shared, there "
            "is none that chance could not explain."
        )
    return said + "Nowhere can a gain be shown."


def questions(results: Mapping) -> Section | None:
    """Answers to questions of fact; None if none were asked."""
    facts = results.get("facts")
    if not facts or not facts["asked"]:
        return None
    asked, stated = counted(facts["asked"], "question"), facts["stated"]
    sentence = (
        f"{asked} in the documents’ words (“Population of X: total:”), each about a held-out "
        "document, which neither the model nor the database had seen. The documents were added to a "
        "copy of the database; then each digit of every answer was exchanged in them. "
        f"For {stated:,} of the questions a passage that was found states the answer, both "
        "times, and only these are counted. The answer that a model gives is the first "
        "number that its likeliest tokens spell. Nothing was trained in between."
    )
    if not stated:
        return Section([f"{sentence} None was."])
    names = {
        "off": "right, retrieval off",
        "before": "right, before the documents were added",
        "on": "right, with the documents in the database",
        "prompt": "right, the same passages in the prompt",
        "edited": "the changed number, after the documents were changed",
        "sentence": "right, asked in other words (“The population of X is”)",
    }
    counts = facts["counts"]
    rows = [
        (names[name], _of(share, counts[name]), percent(share))
        for name, share in facts["right"].items()
    ]
    return Section([sentence], ("answers", "count", "share"), rows)


def _of(share: float, count: int) -> str:
    return f"{round(share * count):,} of {count:,}"


def answers(results: Mapping) -> Section | None:
    """The first questions with their answers, before and after the edit."""
    examples = (results.get("facts") or {}).get("examples")
    if not examples:
        return None
    sentence = (
        "The first of them, as they are answered, up to the first number or the first token "
        "that makes it wrong."
    )
    header = (
        "question",
        "the document says",
        "off",
        "on",
        "the document says then",
        "on, then",
    )
    rows = [
        (
            each["prompt"].split("\n")[-1],
            each["answer"],
            each["said"]["off"],
            each["said"]["on"],
            each["edited_answer"],
            each["said"]["edited"],
        )
        for each in examples
    ]
    return Section([sentence], header, rows)


def limits(chosen: Mapping, evaluation: Mapping) -> Section:
    """Which passages are read.

    Args:
        chosen: the run's `reading.json`; without `tried` if nothing was chosen.
        evaluation: the settings of the evaluation, which go before what was chosen.
    """
    by_hand = [
        f"evaluation.{name} = {evaluation[name]:g}"
        for name in ("max_distance", "least_tokens")
        if evaluation.get(name)
    ]
    if by_hand:
        return Section([f"Set by hand: {', '.join(by_hand)}."])
    if "tried" not in chosen:
        return Section(["Every passage that is found is read: no limit was chosen."])
    tried = chosen["tried"]
    meaning = (
        "A passage outside of the limits counts as absent, and a chunk whose passages are "
        "all absent is predicted as with retrieval off, exactly. The limits were chosen on "
        "the validation split, after training; the table has its bits per byte for all "
        "that was tried, by the farthest passage that is read and the fewest tokens that "
        "ask."
    )
    tokens = sorted({each["least_tokens"] for each in tried})
    losses = {(t["max_distance"], t["least_tokens"]): t["bits_per_byte"] for t in tried}
    rows = [
        (
            "none is read" if far < 0 else f"up to {number(far, 3)}",
            *(number(losses[far, least]) for least in tokens),
        )
        for far in sorted({each["max_distance"] for each in tried})
    ]
    header = ("squared distance", *(f"≥ {counted(n, 'token')}" for n in tokens))
    return Section([_limits_sentence(chosen), meaning], header, rows)


def _limits_sentence(chosen: Mapping) -> str:
    if chosen["max_distance"] < 0:
        return "No passage is read: on the validation split each limit but none at all lost."
    return (
        f"A passage is read if its squared distance is at most "
        f"{number(chosen['max_distance'], 3)} and the chunk that asked for it has at least "
        f"{counted(chosen['least_tokens'], 'token')}: that is so for "
        f"{percent(chosen['share_read'])} of the chunks that have passages."
    )


def heads(results: Mapping) -> Section:
    """Which layers read, with how many of their heads."""
    layers = results["gates"]
    named = ", ".join(layers)
    num_heads = len(next(iter(layers.values()))["after"])
    said = (
        f"Cross-attention stands in layer{'s' * (len(layers) != 1)} {named}, counted from 1. "
        f"Each of the {num_heads} heads of such a layer has a gate: at 0 what it reads "
        "counts for nothing, at 1 it counts as the decoder's own attention does."
    )
    before = [gates["before"] for gates in layers.values()]
    if all(each is not None for each in before):
        opened = sum(gate != 0 for each in before for gate in each)
        said += (
            f" {counted(opened, 'gate')} of {len(before) * num_heads} began open: heads "
            "that copy in the decoder itself."
        )
    if all(gates.get("attention") is not None for gates in layers.values()):
        said += (
            " What a head does not give to passages rests on the token that opens them: "
            "it has found nothing to read there."
        )
    return Section([said])
