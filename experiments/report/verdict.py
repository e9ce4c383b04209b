"""What an evaluation shows, in words and table cells made from its numbers alone."""

import dataclasses
import math
from collections.abc import Mapping

ORDER = ("off", "on", "random")
NOT_KNOWN = "n/a"
# Ours: below this many documents a percentile bootstrap is visibly too narrow.
_FEW_DOCUMENTS = 30

_MEANINGS = {
    "off": (
        "The same model with its chunked cross-attention (CCA) skipped: it sees the text "
        "and no passage. It was trained with passages, so this is not what a model "
        "trained without retrieval would reach; train one with model.cca_layers empty "
        "to know that."
    ),
    "on": "Each chunk's own nearest passages of the database, as in training.",
    "random": (
        "Passages drawn at random from the database in place of the nearest: what it "
        "does to read any passage, whatever it says."
    ),
}
_FROZEN = (
    "The same model with its chunked cross-attention (CCA) skipped: exactly the baseline "
    "that was retrofitted, whose parameters stayed frozen."
)
_BASELINE = (
    "The model reads no passage: it has no chunked cross-attention (CCA) at all."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One condition in the table, every cell as it is shown."""

    condition: str
    meaning: str
    bits_per_byte: str
    interval: str
    minus_off: str
    minus_off_interval: str
    little_overlap: str
    little_overlap_minus_off: str


def number(value: float, digits: int = 4) -> str:
    """'2.1500'; a real minus sign, no negative zero, and `NOT_KNOWN` for NaN."""
    if not math.isfinite(value):
        return NOT_KNOWN
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: float) -> str:
    """'+0.0100', '−0.0100', '0.0000'."""
    text = number(value)
    return f"+{text}" if value > 0 and text != number(0.0) else text


def interval(ends: tuple[float, float], shown=number) -> str:
    """'2.1000 to 2.2000'; `NOT_KNOWN` if an end is NaN."""
    if not all(map(math.isfinite, ends)):
        return NOT_KNOWN
    return f"{shown(ends[0])} to {shown(ends[1])}"


def percent(share: float, digits: int = 0) -> str:
    """'62 %', with a space that does not break."""
    return f"{number(100 * share, digits)}\N{NO-BREAK SPACE}%"


def table(results: Mapping) -> list[Row]:
    """The conditions that were measured, always in the same order."""
    measured = results["conditions"]
    off_little = measured["off"]["little_overlap_bits_per_byte"]
    meanings = _MEANINGS if "on" in measured else {"off": _BASELINE}
    if (results.get("init_from") or {}).get("freeze"):
        meanings = meanings | {"off": _FROZEN}
    return [
        _row(name, meanings[name], measured[name], off_little)
        for name in ORDER
        if name in measured
    ]


def _row(name: str, meaning: str, values: Mapping, off_little: float) -> Row:
    little = values["little_overlap_bits_per_byte"]
    is_off = name == "off"
    return Row(
        condition=name,
        meaning=meaning,
        bits_per_byte=number(values["bits_per_byte"]),
        interval=interval(values["interval"]),
        minus_off="0" if is_off else signed(values["minus_off"]),
        minus_off_interval=(
            "by definition"
            if is_off
            else interval(values["minus_off_interval"], signed)
        ),
        little_overlap=number(little),
        little_overlap_minus_off="0" if is_off else signed(little - off_little),
    )


def effect(values: Mapping) -> str:
    """'lower', 'higher', 'unclear' (zero is inside the interval) or 'unknown' (none)."""
    low, high = values["minus_off_interval"]
    if not (math.isfinite(low) and math.isfinite(high)):
        return "unknown"
    if high < 0:
        return "lower"
    return "higher" if low > 0 else "unclear"


def headline(results: Mapping) -> str:
    """One sentence: what retrieval does to held-out text, and what random passages do."""
    measured, documents = results["conditions"], results["documents"]
    off = measured["off"]
    if not math.isfinite(off["bits_per_byte"]):
        return "No held-out text was scored, so nothing can be said about this model."
    if "on" not in measured:
        ends = interval(off["interval"])
        return (
            "This model was trained without retrieval: "
            f"{number(off['bits_per_byte'])} bits per byte on "
            f"{counted(documents, 'held-out document')} (95 % interval {ends})."
        )
    said = _about_retrieval(measured["on"], off, documents)
    if "random" in measured:
        said += f"; {_about_random(measured['random'], measured['on'])}"
    return f"{said}."


def _about_retrieval(on: Mapping, off: Mapping, documents: int) -> str:
    difference = on["minus_off"]
    from_to = f"from {number(off['bits_per_byte'])} to {number(on['bits_per_byte'])}"
    ends = interval(on["minus_off_interval"], signed)
    amount = f"by {number(abs(difference))} ({percent(abs(difference) / off['bits_per_byte'], 1)})"
    sure = f"95 % interval of the difference {ends}, {counted(documents, 'document')}"
    where = "bits per byte on held-out documents"
    match effect(on):
        case "lower":
            return f"Retrieval lowers {where} {amount}, {from_to} ({sure})"
        case "higher":
            return f"Retrieval hurts: it raises {where} {amount}, {from_to} ({sure})"
        case "unclear":
            return (
                f"No effect of retrieval can be shown: {where} go {from_to}, and the "
                f"difference of {signed(difference)} may be chance ({sure}, which "
                "includes zero)"
            )
    return (
        f"Whether retrieval helps can't be told from {counted(documents, 'document')}: "
        f"{where} go {from_to} ({signed(difference)}), without a 95 % interval"
    )


def _about_random(random: Mapping, on: Mapping) -> str:
    difference = random["minus_off"]
    ends = interval(random["minus_off_interval"], signed)
    match effect(random):
        case "lower":
            said = f"random passages lower them too, by {number(-difference)} ({ends})"
            if effect(on) != "lower":
                return said
            if difference <= on["minus_off"]:
                return f"{said}, no less, so the gain is not owed to what is retrieved"
            return f"{said}, so not all of the gain is owed to what is retrieved"
        case "higher":
            return f"random passages raise them by {number(difference)} ({ends})"
        case "unclear":
            return (
                f"random passages have no effect that can be shown ({signed(difference)}, "
                f"{ends})"
            )
    return f"with random passages the difference is {signed(difference)}"


def notes(results: Mapping) -> list[str]:
    """What a careful reader should hold against the headline."""
    measured, documents = results["conditions"], results["documents"]
    said = []
    if "on" in measured:
        little = "little_overlap_bits_per_byte"
        difference = measured["on"][little] - measured["off"][little]
        if math.isfinite(difference):
            said.append(
                "Where chunks have little word for word in common with their passages "
                f"({percent(results['little_overlap_share'])} of the chunks), retrieval makes "
                f"a difference of {signed(difference)}: what is left of its effect where "
                "there is little to copy. No interval was computed for this one."
            )
        else:
            said.append("No chunk has little in common with its passages.")
    if documents < _FEW_DOCUMENTS:
        said.append(
            f"With {counted(documents, 'document')} the intervals themselves are rough "
            "and rather too narrow: measure on more held-out text before relying on them."
        )
    return said


def counted(count: float, noun: str) -> str:
    """'1 document', '12,000 documents'."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"
