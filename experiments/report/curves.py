"""What a report says of conditions that are measured over a range: of neighbours, of a database, of overlap.

Each part is there only if it was measured. Every difference stands with its interval.
"""

from collections.abc import Mapping, Sequence

from experiments.report.retrofit import Section
from experiments.report.verdict import (
    LABELS,
    NOT_KNOWN,
    in_order,
    interval,
    number,
    percent,
    signed,
)

_CHANGE = ("bits per byte", "difference to off", "its 95 % interval")


def neighbours(results: Mapping) -> Section | None:
    """Retrieval on with fewer or more neighbours."""
    measured = results.get("neighbours")
    if not measured:
        return None
    sentence = (
        "The same model reads so many of the nearest passages for each chunk, without "
        "another training."
    )
    rows = [(f"{row['neighbours']:,}", *_change(row)) for row in measured]
    return Section([sentence], ("passages", *_CHANGE), rows)


def database_sizes(results: Mapping) -> Section | None:
    """Retrieval on with parts of the database."""
    measured = results.get("database_shares")
    if not measured:
        return None
    sentence = (
        "The same model searches a part of the database, whole documents of it drawn by "
        "chance."
    )
    rows = [
        (percent(row["share"], 1), f"{row['chunks']:,}", *_change(row))
        for row in measured
    ]
    return Section([sentence], ("share of the database", "chunks", *_CHANGE), rows)


def overlap(results: Mapping) -> Section | None:
    """Gains on chunks that share at most so much with their passages."""
    measured = results.get("by_overlap")
    if not measured:
        return None
    names = in_order(measured[-1]["conditions"])
    rows = [
        (
            f"at most {percent(entry['at_most'], 1)}",
            f"{entry['chunks']:,}",
            LABELS.get(name, name),
            *_change(entry["conditions"][name]),
            _kept(entry["conditions"][name]),
        )
        for entry in measured
        for name in names
        if name != "off" and name in entry["conditions"]
    ]
    sentence = (
        "Chunks of which at most such a share stands word for word, in one run, in a "
        "passage found for them: what is left of the gain where less can be copied."
    )
    header = ("shared", "chunks", "passages", *_CHANGE, "share of the whole gain")
    return Section([sentence], header, rows) if rows else None


def decontaminated(results: Mapping) -> Section | None:
    """The conditions on chunks that share no run of tokens with the whole database."""
    measured = results.get("decontaminated")
    if not measured:
        return None
    sentence = (
        f"The {measured['chunks']:,} chunks none of whose runs of "
        f"{measured['gram_tokens']} tokens stands anywhere in the database."
    )
    found = measured["conditions"]
    rows = [(LABELS.get(name, name), *_change(found[name])) for name in in_order(found)]
    return Section([sentence], ("passages", *_CHANGE), rows)


def words(results: Mapping) -> Section | None:
    """Perplexity of a token and of a word."""
    measured = results.get("per_word")
    if not measured:
        return None
    sentence = (
        f"{measured['words_scored']:,} words are scored, and the pages have "
        f"{measured['words_of_pages']:,}: they differ where text was joined again from its "
        "tokens, and the usual score counts those of the pages."
    )
    found, conditions = measured["conditions"], results["conditions"]
    rows = [
        (
            LABELS.get(name, name),
            number(conditions[name]["perplexity"], 2),
            number(found[name]["perplexity_by_words_scored"], 2),
            number(found[name]["perplexity_by_words_of_pages"], 2),
            number(found[name]["bits_per_byte_of_pages"]),
        )
        for name in in_order(found)
    ]
    header = (
        *("passages", "perplexity of a token", "of a word scored"),
        *("of a word of the pages", "bits per byte of the pages"),
    )
    return Section([sentence], header, rows)


def _change(values: Mapping) -> Sequence[str]:
    ends = values["minus_off_interval"]
    return (
        number(values["bits_per_byte"]),
        signed(values["minus_off"]),
        interval((ends[0], ends[1]), signed),
    )


def _kept(values: Mapping) -> str:
    kept = values.get("gain_kept")
    return NOT_KNOWN if kept is None else percent(kept)
