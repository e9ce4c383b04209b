"""A run's report: one HTML page that needs nothing else, and the same in Markdown.

Both are templates of one page, which is made from the files of the run: no number is typed
by hand.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.database import Database
from data_pipeline.storage.files import read_json, write_file
from data_pipeline.storage.printing import printable
from data_pipeline.storage.progress import say
from experiments.report import (
    curves,
    facts,
    markdown,
    plots,
    retrofit,
    templates,
    verdict,
)
from retro_jax.runs.metrics import read_metrics

_SHARED_WORDS = 3  # as many in a row, at least, are marked


RUN = "results"  # the name of what a run's own report shows


def write(workdir: Path, database: Database, name: str = RUN) -> None:
    """Writes the page of an evaluation, as HTML and as Markdown with pictures.

    Those of the run itself are `report.html`, `report.md` and `report_files/` in its folder;
    those of others lie beside their results, `evaluation/NAME.html` and so on.

    Raises:
        ValueError: if the run has not been evaluated.
    """
    results = read_json(workdir / "evaluation" / f"{name}.json")
    if results is None:
        raise ValueError(f"{workdir} has no results to report: run --job=evaluate")
    of_run = name == RUN
    place, stem = (workdir, "report") if of_run else (workdir / "evaluation", name)
    run = printable(workdir.absolute().name)
    page = make_page(
        run if of_run else f"{run}, {name}",
        _printable(results),
        _printable(read_json(workdir / "settings.json") or {}),
        _printable(database.manifest),
        read_metrics(workdir / "metrics" / "metrics.jsonl"),
        read_json(workdir / "reading.json") or {},
    )
    drawn = [plot for part in page["parts"] for plot in part.drawn]
    drawn = [*page["results_plots"], *drawn, *page["training_plots"]]
    page |= {"of_run": of_run, "pictures": markdown.Markdown(f"{stem}_files")}
    page |= {} if of_run else {"commands": []}  # those train the run again
    write_pictures(place / page["pictures"], drawn)
    for ending in ("md", "html"):
        write_file(place / f"{stem}.{ending}", render(page, f"report.{ending}"))
    say(f"\n{page['headline']}\n")
    say(f"report: {place / f'{stem}.html'} (for terminals: {stem}.md)")


def make_page(
    name: str,
    results: Mapping,
    settings: Mapping,
    manifest: Mapping,
    rows: Sequence[Mapping],
    limits: Mapping,
) -> dict[str, Any]:
    """All that a report says, in the order in which the templates say it.

    Args:
        name: the name of the run.
        results: `evaluation/results.json`.
        settings: `settings.json`, or empty.
        manifest: the database's manifest.
        rows: the rows of `metrics.jsonl`; may be none.
        limits: `reading.json`, or empty.
    """
    return {
        "name": name,
        "caveats": verdict.caveats(results, settings),
        "headline": verdict.headline(results),
        "unit": verdict.UNIT,
        "summary": retrofit.summary(results) if retrofit.is_one(results) else [],
        "notes": verdict.notes(results),
        "table": verdict.table(results),
        "caption": verdict.caption(results, manifest["chunk_len"]),
        "results_plots": plots.of_results(results["conditions"]),
        "parts": _parts(results, settings, limits),
        "is_prose": retrofit.is_one(results),
        "samples": [_sample(sample) for sample in results.get("samples", ())],
        "training_plots": plots.of_training(rows),
        "facts": [
            ("Evaluation", facts.evaluation(results)),
            ("Database", facts.database(manifest)),
            ("Model", facts.model(settings)),
            ("Training run", facts.training(settings, manifest, rows)),
        ],
        "commands": facts.repeat(settings),
    }


class Part(NamedTuple):
    """A section of the page that only some runs have."""

    anchor: str
    title: str
    section: retrofit.Section
    drawn: Sequence[plots.Plot]


def _parts(results: Mapping, settings: Mapping, limits: Mapping) -> list[Part]:
    """What only some reports have, in order; what was not measured isn't there."""
    found: list[tuple[str, str, retrofit.Section | None, Sequence]] = []
    if retrofit.is_one(results):
        evaluation = settings.get("config", {}).get("evaluation", {})
        found += _of_retrofit(results, evaluation, limits)
    for anchor, title, section in (
        ("neighbours", "More and fewer passages", curves.neighbours(results)),
        ("sizes", "Parts of the database", curves.database_sizes(results)),
        ("overlap", "Where less can be copied", curves.overlap(results)),
        ("clean", "Not in the database", curves.decontaminated(results)),
        ("words", "Perplexity", curves.words(results)),
    ):
        found.append((anchor, title, section, []))
    return [
        Part(anchor, title, section, drawn)
        for anchor, title, section, drawn in found
        if section is not None
    ]


def _of_retrofit(
    results: Mapping, evaluation: Mapping, limits: Mapping
) -> list[tuple[str, str, retrofit.Section | None, Sequence]]:
    """What only a pretrained decoder's report has."""
    bins = results.get("by_longest_run", [])
    return [
        (
            "copied",
            "What is copied and what is not",
            retrofit.copied(results),
            plots.of_runs(bins),
        ),
        (
            "prompt",
            "The same passages in the prompt",
            retrofit.beside_prompt(results),
            plots.of_prompt(results.get("prompt")),
        ),
        ("questions", "Questions of fact", retrofit.questions(results), []),
        ("answers", "Answers before and after an edit", retrofit.answers(results), []),
        (
            "limits",
            "Which passages are read",
            retrofit.limits(limits, evaluation),
            [],
        ),
        (
            "heads",
            "Which layers and heads read",
            retrofit.heads(results),
            plots.of_gates(results["gates"]),
        ),
    ]


def _printable(value):
    """JSON all of whose texts, names included, are printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {_printable(name): _printable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(entry) for entry in value]
    return value


def render(page: Mapping[str, Any], template: str) -> str:
    """A page in the form of a template that stands here; others' text is escaped."""
    from markupsafe import Markup

    environment = templates.environment(is_html=template.endswith(".html"))
    environment.filters |= {
        "number": verdict.number,
        "svg": lambda plot: Markup(plots.svg(plot)),  # has escaped its description
        "code": markdown.code,
        "block": markdown.block,
    }
    made = environment.get_template(template)
    return made.render(page=page, colours=plots.COLOURS)


def _sample(sample: Mapping) -> dict[str, Any]:
    """A continuation with each passage once, and its words that passages hold, too."""
    sources = {source["chunk_id"]: source for source in reversed(sample["sources"])}
    passages = [source["text"] + source["continuation"] for source in sources.values()]
    return {
        **sample,
        "sources": sorted(sources.values(), key=sample["sources"].index),
        "text_parts": mark_shared(sample["text"], passages),
        "truth_parts": mark_shared(sample["truth"], passages),
    }


class Stretch(NamedTuple):
    """A stretch of text, and whether its words stand in a passage as well."""

    text: str
    shared: bool


def mark_shared(text: str, passages: Sequence[str]) -> list[Stretch]:
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
        if spans and start <= spans[-1][1]:  # goes on with the run before
            start = spans.pop()[0]
        spans.append((start, stop))
    parts, done = [], 0
    for start, stop in spans:
        parts += [Stretch(text[done:start], False), Stretch(text[start:stop], True)]
        done = stop
    return [part for part in (*parts, Stretch(text[done:], False)) if part.text]


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip(*(words[first:] for first in range(_SHARED_WORDS)), strict=False))


def write_pictures(folder: Path, drawn: Sequence[plots.Plot]) -> None:
    """PNGs for the Markdown; those of an earlier report that are no more are removed."""
    folder.mkdir(exist_ok=True)
    for plot in drawn:
        write_file(folder / f"{plot.name}.png", plots.png(plot.figure))
    wanted = {f"{plot.name}.png" for plot in drawn}
    for path in folder.glob("*.png"):
        if path.name not in wanted:
            path.unlink()
