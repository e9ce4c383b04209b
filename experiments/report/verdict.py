"""An evaluation's verdict: sentences and table cells, made from its numbers alone."""

import math
from collections.abc import Mapping
from typing import NamedTuple

ORDER = (
    *("off", "untrained", "on", "random", "shuffled", "match", "continuation"),
    *("oracle", "stale", "knn"),
)
LABELS = {  # else their names
    "untrained": "on, untrained",
    "random unlimited": "random, all read",
    "prompt": "in the prompt",
    "match": "match alone",
    "continuation": "continuation alone",
    "oracle": "the true text",
    "stale": "a chunk late",
    "knn": "kNN-LM",
}
NOT_KNOWN = "n/a"
# Ours: below this many documents a percentile bootstrap is visibly too narrow.
_FEW_DOCUMENTS = 30
_LITTLE_OVERLAP = "little_overlap_bits_per_byte"

UNIT = (
    "Bits per byte: what it costs to store a byte of the text with the model's predictions; "
    "less is better, and 8 is no prediction at all."
)
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
_CONTROLS = {
    "shuffled": (
        "Passages that were found for another sequence of the same text: of the subject of the "
        "collection, not of the chunk."
    ),
    "match": "The same passages without what follows the chunk that was found.",
    "continuation": "Of the same passages only what follows the chunk that was found.",
    "oracle": (
        "The chunk's own true text and what follows it, in place of the nearest passage: a "
        "canary, for so much would be gained if the measured text stood in the database."
    ),
    "stale": (
        "The passages that the chunk before had found, as they are read where retrieval runs "
        "while text is written (evaluation.overlapped)."
    ),
    "knn": (
        "No passage is read. What the decoder alone says is mixed with the tokens behind the "
        "states of the database that are nearest to its own (kNN-LM)."
    ),
}
_FROZEN = (
    "The same model with its chunked cross-attention (CCA) skipped: exactly the baseline "
    "that was retrofitted, whose parameters stayed frozen."
)
_DECODER = {
    "off": (
        "The pretrained decoder itself, bit for bit: cross-attention (CCA) is skipped, and "
        "the decoder's own weights were not trained."
    ),
    "untrained": (
        "Each chunk's own nearest passages, read by cross-attention as it was before any "
        "training: copied from the decoder's own attention, open for heads that copy."
    ),
    "on": (
        "The same passages, read by cross-attention as it was trained. Passages outside of "
        "the limits of reading are absent in every condition."
    ),
    "random": (
        "Passages drawn at random from the database in place of the nearest, and read "
        "where the limits let them: what it does to read any passage, whatever it says."
    ),
}
_BASELINE = (
    "The model reads no passage: it has no chunked cross-attention (CCA) at all."
)


class Row(NamedTuple):
    """A condition in the table, with its cells as they are shown."""

    condition: str
    meaning: str
    cells: tuple[
        str, ...
    ]  # bits per byte, difference to off, the same at little overlap

    @property
    def label(self) -> str:
        """The condition as readers see it."""
        return LABELS.get(self.condition, self.condition)


def number(value: float, digits: int = 4) -> str:
    """Writes '2.1500', with a real minus sign, no negative zero, `NOT_KNOWN` for NaN."""
    if not math.isfinite(value):
        return NOT_KNOWN
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: float, digits: int = 4) -> str:
    """Writes a difference: '+0.0100', '−0.0100', '0.0000'."""
    text = number(value, digits)
    return f"+{text}" if value > 0 and text != number(0.0, digits) else text


def interval(ends: tuple[float, float], shown=number) -> str:
    """Writes '2.1000 to 2.2000', or `NOT_KNOWN` if an end is NaN."""
    if not all(map(math.isfinite, ends)):
        return NOT_KNOWN
    return f"{shown(ends[0])} to {shown(ends[1])}"


def percent(share: float, digits: int = 0) -> str:
    """Writes '62 %', with a space that does not break."""
    return f"{number(100 * share, digits)}\N{NO-BREAK SPACE}%"


def table(results: Mapping) -> list[Row]:
    """The conditions that were measured, always in the same order."""
    measured = results["conditions"]
    meanings = {"off": _BASELINE} if _is_baseline(results) else _MEANINGS
    frozen = (results.get("init_from") or {}).get("freeze")
    if "gates" in results:  # a pretrained decoder reads itself
        meanings = _DECODER if frozen else _DECODER | {"off": _MEANINGS["off"]}
    elif frozen:
        meanings = meanings | {"off": _FROZEN}
    meanings = _CONTROLS | meanings
    off_little, rows = measured["off"][_LITTLE_OVERLAP], []
    for name in in_order(measured):
        values, is_off = measured[name], name == "off"
        little = values[_LITTLE_OVERLAP]
        cells = (
            number(values["bits_per_byte"]),
            interval(values["interval"]),
            "0" if is_off else signed(values["minus_off"]),
            "by definition"
            if is_off
            else interval(values["minus_off_interval"], signed),
            number(little),
            "0" if is_off else signed(little - off_little),
        )
        rows.append(Row(name, meanings.get(name, ""), cells))
    return rows


def in_order(measured: Mapping) -> list[str]:
    """The conditions that were measured as readers get them: known ones, then others."""
    known = [name for name in ORDER if name in measured]
    return [*known, *(name for name in measured if name not in ORDER)]


def _is_baseline(results: Mapping) -> bool:
    """Whether the model can read no passage; then nothing is known of what it could copy."""
    return "on" not in results["conditions"] and "by_longest_run" not in results


def caption(results: Mapping, chunk_len: int) -> str:
    """What the table's numbers are, and how they were measured."""
    of_what = (
        f"of the documents of {results['held_out']}"
        if results.get("held_out")
        else f"of the {results['split']} split's documents, which are not in the database"
    )
    return (
        f"Bits per byte {of_what}; less is better. Intervals: bootstrap over whole documents; differences "
        "are taken on the same documents. Little overlap: the "
        f"{percent(results['little_overlap_share'])} of chunks that share at most "
        f"{chunk_len // 8} of their {chunk_len} tokens in a row with a passage retrieved "
        "for them or read by them."
    )


def effect(values: Mapping) -> str:
    """Tells the direction: 'lower', 'higher', 'unclear' (may be zero) or 'unknown'."""
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
        is_baseline = _is_baseline(results)
        what = "This model was trained without" if is_baseline else "Without"
        return (
            f"{what} retrieval: "
            f"{number(off['bits_per_byte'])} bits per byte on "
            f"{counted(documents, 'held-out document')} (95 % interval {ends})."
        )
    clauses = [_effect_of_retrieval(measured["on"], off, documents)]
    if "random" in measured:
        clauses.append(_effect_of_random(measured["random"], measured["on"]))
    return f"{'; '.join(clauses)}."


def _effect_of_retrieval(on: Mapping, off: Mapping, documents: int) -> str:
    """A clause of the headline; an interval that holds zero shows no effect."""
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


def _effect_of_random(random: Mapping, on: Mapping) -> str:
    """A clause of the headline: random passages are the control for retrieval."""
    difference = random["minus_off"]
    ends = interval(random["minus_off_interval"], signed)
    match effect(random):
        case "lower":
            lowers = (
                f"random passages lower them too, by {number(-difference)} ({ends})"
            )
            if effect(on) != "lower":
                return lowers
            if difference <= on["minus_off"]:
                return (
                    f"{lowers}, no less, so the gain is not owed to what is retrieved"
                )
            return f"{lowers}, so not all of the gain is owed to what is retrieved"
        case "higher":
            return f"random passages raise them by {number(difference)} ({ends})"
        case "unclear":
            return (
                f"random passages have no effect that can be shown ({signed(difference)}, "
                f"{ends})"
            )
    return f"with random passages the difference is {signed(difference)}"


def notes(results: Mapping) -> list[str]:
    """Reservations that a careful reader should hold against the headline."""
    measured, found = results["conditions"], []
    if "on" in measured:
        difference = measured["on"][_LITTLE_OVERLAP] - measured["off"][_LITTLE_OVERLAP]
        if math.isfinite(difference):
            found.append(
                "Where chunks have little word for word in common with their passages "
                f"({percent(results['little_overlap_share'])} of the chunks), retrieval makes "
                f"a difference of {signed(difference)}: what is left of its effect where "
                "there is little to copy. No interval was computed for this one."
            )
        else:
            found.append("No chunk has little in common with its passages.")
    return found


def caveats(results: Mapping, settings: Mapping) -> list[str]:
    """What must be known before the headline's number: how few texts, and one seed."""
    documents, found = results["documents"], []
    if documents < _FEW_DOCUMENTS:
        found.append(
            f"With {counted(documents, 'document')} the intervals themselves are rough "
            "and rather too narrow: measure on more held-out text before relying on them."
        )
    seed = settings.get("config", {}).get("train", {}).get("seed")
    of_seed = "" if seed is None else f" (train.seed = {seed})"
    found.append(
        f"This is one run with one seed{of_seed}; another seed gives other numbers, and "
        "the intervals do not say how much they differ."
    )
    return found


def counted(count: float, noun: str) -> str:
    """Writes '1 document', '12,000 documents'."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"
