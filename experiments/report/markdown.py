"""The report as Markdown, for terminals and git. Text of others goes in verbatim."""

import re
from collections.abc import Iterable, Sequence

from experiments.report import verdict
from experiments.report.facts import Fact


def escape(text: str) -> str:
    """Words within a line: what Markdown or HTML would take for a mark is escaped."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """A code span; its fence is longer than any run of backticks in the text."""
    line = " ".join(text.split())
    fence = "`" * (_longest_run(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def block(text: str, language: str = "text") -> str:
    """A code block; its fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def render(page) -> str:
    """The whole report; `page` is a `report.Page`."""
    return "\n".join(
        [
            f"# RETRO report: {escape(page.name)}\n",
            f"**{escape(page.headline)}**\n",
            *(f"{escape(note)}\n" for note in page.notes),
            "## Bits per byte on held-out text\n",
            *_table(page),
            *(
                _figure(figure)
                for figure in page.figures
                if figure.section == "results"
            ),
            "## Samples\n",
            *_samples(page),
            "## Training\n",
            *(
                _figure(figure)
                for figure in page.figures
                if figure.section == "training"
            ),
            *_facts(page),
        ]
    )


def _table(page) -> Iterable[str]:
    yield (
        "| retrieval | bits per byte | 95 % interval | difference to off | its 95 % "
        "interval | bits per byte, little overlap | difference to off there |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for row in page.table:
        cells = (
            row.condition,
            row.bits_per_byte,
            row.interval,
            row.minus_off,
            row.minus_off_interval,
            row.little_overlap,
            row.little_overlap_minus_off,
        )
        yield f"| {' | '.join(cells)} |"
    yield f"\n{escape(page.caption)}\n"
    for row in page.table:
        yield f"- **{row.condition}**: {escape(row.meaning)}"
    yield ""


def _figure(figure) -> str:
    return f"![{escape(figure.description)}](report_files/{figure.name}.png)\n"


def _samples(page) -> Iterable[str]:
    if not page.samples:
        yield "No held-out document was long enough for a sample, or none was asked for.\n"
    for number, sample in enumerate(page.samples, start=1):
        yield f"### Sample {number}: {code(sample.document_id)}\n"
        yield f"From a held-out document:\n\n{block(sample.prompt)}"
        yield f"The model continues:\n\n{block(sample.text)}"
        yield f"What really follows:\n\n{block(sample.truth)}"
        if not sample.sources:
            yield "No passage was read.\n"
        for source in sample.sources:
            yield from _source(source)


def _source(source) -> Iterable[str]:
    licence = escape(source["licence"]) or "not stated"
    yield (
        f"Passage read: {code(source['document_id'])} ({escape(source['title'])}), "
        f"{code(source['uri'])} at byte {source['offset']:,}; squared distance "
        f"{verdict.number(source['distance'], 3)}; licence {licence}\n"
    )
    yield block(source["text"] + source["continuation"])


def _facts(page) -> Iterable[str]:
    for title, facts in page.facts:
        yield f"## {title}\n"
        yield from _fact_lines(facts)
        yield ""
    if page.commands:
        yield "## How to repeat this\n"
        yield block("\n".join(page.commands), "sh")


def _fact_lines(facts: Sequence[Fact]) -> Iterable[str]:
    for fact in facts:
        told = [escape(fact.value)] if fact.value else []
        told.append(", ".join(map(code, fact.code)))
        yield f"- {escape(fact.name)}: {' '.join(told).strip()}"
