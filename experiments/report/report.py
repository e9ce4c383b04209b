"""Writes a run's report: one HTML page that needs nothing else, and the same in Markdown.

Everything in it is made from the files of the run: no number is typed by hand.
"""

import dataclasses
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from data_pipeline.database import Database
from data_pipeline.storage.files import read_json, write_file
from experiments.report import facts, markdown, plots, verdict
from retro_jax.runs.metrics import read_metrics, say

_SHARED_WORDS = 3  # as many in a row, at least, are marked
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclasses.dataclass(frozen=True, slots=True)
class Plot:
    """A figure of the report; `description` is what it shows, for who can't see it."""

    name: str
    section: str  # results | training
    description: str
    figure: Figure


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text, and whether its words stand in a passage as well."""

    text: str
    shared: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A continuation of a held-out document, what really follows, and what was read."""

    document_id: str
    title: str
    uri: str
    prompt: str
    text: str
    truth: str
    text_parts: list[Part]
    truth_parts: list[Part]
    sources: list[dict]  # a database's `Found`, as JSON


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """All that a report says, in the order in which it is said."""

    name: str
    headline: str
    notes: list[str]
    table: list[verdict.Row]
    caption: str
    figures: list[Plot]
    samples: list[Sample]
    facts: list[tuple[str, list[facts.Fact]]]
    commands: list[str]


def write(workdir: Path, database: Database) -> None:
    """Writes `report.html`, `report.md` and `report_files/` into a run's folder.

    Raises:
        ValueError: if the run has not been evaluated.
    """
    results = read_json(workdir / "evaluation" / "results.json")
    if results is None:
        raise ValueError(f"{workdir} has no results to report: run --job=evaluate")
    page = make_page(
        workdir.absolute().name,
        printable(results),
        printable(read_json(workdir / "settings.json") or {}),
        printable(database.manifest),
        read_metrics(workdir / "metrics" / "metrics.jsonl"),
    )
    _write_figures(workdir / "report_files", page.figures)
    for name, text in (
        ("report.md", markdown.render(page)),
        ("report.html", render_html(page)),
    ):
        write_file(workdir / name, text.encode())
    say(f"\n{page.headline}\n")
    say(f"report: {workdir / 'report.html'} (for terminals: report.md)")


def make_page(
    name: str,
    results: Mapping,
    settings: Mapping,
    manifest: Mapping,
    rows: Sequence[Mapping],
) -> Page:
    """What the report says, from what the run left behind.

    Args:
        name: of the run.
        results: `evaluation/results.json`.
        settings: `settings.json`, or empty.
        manifest: the database's.
        rows: of `metrics.jsonl`; may be none.
    """
    return Page(
        name=name,
        headline=verdict.headline(results),
        notes=verdict.notes(results),
        table=verdict.table(results),
        caption=_caption(results, manifest["chunk_len"]),
        figures=_figures(results, rows),
        samples=[_sample(sample) for sample in results["samples"]],
        facts=[
            ("Evaluation", facts.evaluation(results)),
            ("Database", facts.database(manifest)),
            ("Model", facts.model(settings)),
            ("Training run", facts.training(settings, manifest, rows)),
        ],
        commands=facts.repeat(settings),
    )


def printable(value):
    """JSON whose texts hold no control character and can be written as UTF-8."""
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode().replace("\r\n", "\n")
        return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)
    if isinstance(value, Mapping):
        return {printable(name): printable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [printable(entry) for entry in value]
    return value


def render_html(page: Page) -> str:
    """The page, with its figures and styles inside; text of others is escaped."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = verdict.number
    template = importlib.resources.files("experiments.report") / "report.html"
    drawn = [
        (plot, Markup(plots.svg(plot.figure, plot.name, plot.description)))
        for plot in page.figures
    ]
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        page=page,
        results_figures=[svg for plot, svg in drawn if plot.section == "results"],
        training_figures=[svg for plot, svg in drawn if plot.section == "training"],
        colours=plots.COLOURS,
    )


def _caption(results: Mapping, chunk_len: int) -> str:
    split = results["split"]
    return (
        f"Bits per byte of the {split} split's documents, which are not in the database; "
        "less is better. Intervals: bootstrap over whole documents; differences are "
        "taken on the same documents. Little overlap: the "
        f"{verdict.percent(results['little_overlap_share'])} of chunks that share at most "
        f"{chunk_len // 8} of their {chunk_len} tokens in a row with a passage retrieved "
        "for them or read by them."
    )


def _figures(results: Mapping, rows: Sequence[Mapping]) -> list[Plot]:
    conditions, made = results["conditions"], []
    if len(conditions) > 1:
        told = [
            f"{row.condition} {row.bits_per_byte}" for row in verdict.table(results)
        ]
        text = f"Bits per byte by condition: {', '.join(told)}"
        figure = plots.bits_per_byte(conditions)
        made.append(Plot("bits-per-byte", "results", text, figure))
        told = [
            f"{row.condition} {row.minus_off} (95 % interval {row.minus_off_interval})"
            for row in verdict.table(results)
            if row.condition != "off"
        ]
        text = f"Difference in bits per byte to retrieval off: {', '.join(told)}"
        figure = plots.difference(conditions)
        made.append(Plot("difference", "results", text, figure))
    return made + (_training_figures(rows) if rows else [])


def _training_figures(rows: Sequence[Mapping]) -> list[Plot]:
    first, last = rows[0], rows[-1]
    texts = {
        "loss": (
            f"Training loss in bits per byte: {first['bits_per_byte']:.2f} at step "
            f"{first['step']}, {last['bits_per_byte']:.2f} at step {last['step']}"
        ),
        "learning-rate": (
            f"Learning rate over steps, {max(r['learning_rate'] for r in rows):g} at most"
        ),
        "speed": f"Tokens per second, {last['tokens_per_s']:,.0f} in the end",
    }
    drawn = {
        "loss": plots.loss(rows),
        "learning-rate": plots.learning_rate(rows),
        "speed": plots.throughput(rows),
    }
    return [Plot(name, "training", texts[name], drawn[name]) for name in drawn]


def _sample(sample: Mapping) -> Sample:
    once: dict[int, dict] = {}
    for source in sample["sources"]:
        once.setdefault(source["chunk_id"], source)
    sources = list(once.values())
    passages = [source["text"] + source["continuation"] for source in sources]
    document = sample["document"]
    return Sample(
        document_id=document["id"],
        title=document["title"],
        uri=document["uri"],
        prompt=sample["prompt"],
        text=sample["text"],
        truth=sample["truth"],
        text_parts=mark_shared(sample["text"], passages),
        truth_parts=mark_shared(sample["truth"], passages),
        sources=sources,
    )


def mark_shared(text: str, passages: Sequence[str]) -> list[Part]:
    """Cuts a text where runs of words begin and end that a passage holds as well.

    Only letters, digits and underscores count; runs are of `_SHARED_WORDS` or more.
    """
    known = {run for passage in passages for run in _runs(re.findall(r"\w+", passage))}
    words = list(re.finditer(r"\w+", text))
    spans: list[tuple[int, int]] = []
    for place, run in enumerate(_runs([word.group() for word in words])):
        if run not in known:
            continue
        start, stop = words[place].start(), words[place + _SHARED_WORDS - 1].end()
        if spans and start <= spans[-1][1]:
            start = spans.pop()[0]
        spans.append((start, stop))
    parts, done = [], 0
    for start, stop in spans:
        parts += [Part(text[done:start], False), Part(text[start:stop], True)]
        done = stop
    return [part for part in (*parts, Part(text[done:], False)) if part.text]


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip(*(words[first:] for first in range(_SHARED_WORDS)), strict=False))


def _write_figures(folder: Path, figures: Sequence[Plot]) -> None:
    """PNGs for the Markdown; those of an earlier report that are no more are removed."""
    folder.mkdir(exist_ok=True)
    for plot in figures:
        write_file(folder / f"{plot.name}.png", plots.png(plot.figure))
    wanted = {f"{plot.name}.png" for plot in figures}
    for path in folder.glob("*.png"):
        if path.name not in wanted:
            path.unlink()
