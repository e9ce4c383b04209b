"""The report on what was measured: claims, tables and figures, from committed result files.

    python -m experiments.report.evidence [--results=DIR] [--out=DIR]

`retro launch status DIR --keep=experiments/results/NAME.json` writes such a file from a launch;
`evaluation/results.json` of a run is one, too. NAME begins with that of a claim (`claims.py`).
No number is typed by hand, and what was not measured says so.
"""

import argparse
import functools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from data_pipeline.storage.files import read_json, write_file
from data_pipeline.storage.printing import printable, protect_streams
from data_pipeline.storage.progress import say
from experiments import command_line
from experiments.configs import ablations
from experiments.report import claims, findings, plots, report, table13, verdict
from experiments.report.facts import Fact

RESULTS = Path(__file__).parents[1] / "results"
_LOG = "did_not_work"  # the file of what was tried in vain; no result
_OUT = Path("work") / "evidence"
_SMOKE = (
    "A smoke run: it shows that rows can be trained and measured, and no more. A few steps of one "
    "seed say nothing of what a row gives; no difference below is a claim."
)
_FEW_SEEDS = (
    f"Fewer than {table13.SEEDS_OF_A_CLAIM} seeds: an observation and no claim. A seed moves "
    "a small model more than retrieval does."
)
_CONDITIONS = (
    *("passages", "minus off", "95 % over seeds", "95 % over documents"),
    *("seeds below off", "bits per byte", "95 % over seeds"),
)
_SMOKE_SCALE = "smoke"  # of the ablations
CLAIM, OBSERVATION, SMOKE = "five seeds", "an observation", "a smoke run"
NOTHING = "not measured"


class Table(NamedTuple):
    """A table with what its numbers are."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_long: bool = False  # shown when it is asked for


class Result(NamedTuple):
    """What a result file shows."""

    name: str
    weight: str  # CLAIM, OBSERVATION or SMOKE
    tables: Sequence[Table]
    drawn: Sequence[plots.Plot]
    facts: Sequence[Fact]
    command: str

    @property
    def caveat(self) -> str:
        """What a reader must know before the numbers; '' for nothing."""
        return {OBSERVATION: _FEW_SEEDS, SMOKE: _SMOKE}.get(self.weight, "")


class Section(NamedTuple):
    """A claim with its results; with none it was not measured."""

    claim: claims.Claim
    results: Sequence[Result]

    @property
    def weight(self) -> str:
        """The most that a result of it counts."""
        weights = {result.weight for result in self.results}
        known = (weight for weight in (CLAIM, OBSERVATION, SMOKE) if weight in weights)
        return next(known, NOTHING)


def write(results: Path, out: Path) -> None:
    """Writes `report.html`, `report.md` and `report_files/` from the files of a folder.

    Raises:
        ValueError: naming a file that holds no results.
    """
    log = (read_json(results / f"{_LOG}.json") or {}).get("entries", [])
    page = make_page(read(results), log)
    drawn = [p for s in page["sections"] for each in s.results for p in each.drawn]
    out.mkdir(parents=True, exist_ok=True)
    report.write_pictures(out / "report_files", drawn)
    for name in ("html", "md"):
        write_file(out / f"report.{name}", report.render(page, f"evidence.{name}"))
    say(f"{page['headline']}\nreport: {out / 'report.html'} (for terminals: report.md)")


def read(folder: Path) -> dict[str, dict]:
    """The result files of a folder by their names.

    Raises:
        ValueError: naming a file that holds no results.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem == _LOG:
            continue
        made = read_json(path)
        if not isinstance(made, dict) or not made.keys() & {"variants", "conditions"}:
            raise ValueError(
                f"{path} holds no results: write it by `retro launch status DIR "
                "--keep=FILE`, or copy evaluation/results.json of a run"
            )
        found[printable(path.stem)] = made
    return found


def make_page(found: Mapping[str, Mapping], log: Sequence[Mapping]) -> dict[str, Any]:
    """All that the report says, in its order."""
    known = {claim.name: claim for claim in claims.CLAIMS}
    results: dict[str, list[Result]] = {name: [] for name in known}
    for name, made in found.items():
        claim = next((each for each in known if _is_of(name, each)), None)
        if claim is None:
            claim = name
            known[name] = claims.Claim(name, name, "", "", "")
        own = _result(name, made)
        for other, tables, weight in _findings(made):
            if other == claim:
                own = own._replace(tables=[*own.tables, *tables])
                continue
            shown = own._replace(tables=tables, weight=weight, drawn=[])
            results[other].append(shown)
        results.setdefault(claim, []).append(own)
    sections = [Section(claim, results[name]) for name, claim in known.items()]
    return {
        "headline": _headline([section.weight for section in sections]),
        "unit": verdict.UNIT,
        "sections": sections,
        "log": log,
    }


def _headline(weights: Sequence[str]) -> str:
    """How many claims were measured, and how well."""
    counts = [(weight, weights.count(weight)) for weight in (CLAIM, OBSERVATION, SMOKE)]
    told = [f"{count} measured by {weight}" for weight, count in counts if count]
    return f"{len(weights)} claims: " + ", ".join(
        [*told, f"{weights.count(NOTHING)} not measured."]
    )


def _is_of(name: str, claim: str) -> bool:
    return name == claim or name.startswith(f"{claim}-")


def _result(name: str, made: Mapping) -> Result:
    """What a file shows: a launch over seeds, or what one run has measured."""
    provenance = made.get("made") or {}
    command = str(provenance.get("command", ""))
    if "variants" in made:
        scale = _scale(command)
        tables, drawn = _of_launch(name, made["variants"], scale)
        weight = _weight(made["variants"], scale)
    else:
        tables, drawn, weight = [_of_run(made)], [], OBSERVATION
    return Result(name, weight, tables, drawn, _facts(made, provenance), command)


def _findings(made: Mapping) -> Iterator[tuple[str, list[Table], str]]:
    """What a file has found for claims: the claim, tables and their weight.

    Of a launch the first variant counts, beside which the others stand. A smoke run has
    found nothing.
    """
    scale = _scale(str((made.get("made") or {}).get("command", "")))
    if scale == _SMOKE_SCALE:
        return
    is_launch = "variants" in made
    first: Mapping = next(iter(made["variants"].values()), {}) if is_launch else {}
    of_run = [] if is_launch else findings.of_results(made)
    for claim in claims.CLAIMS:
        of_seeds = [
            each for each in first.get("findings") or () if each["claim"] == claim.name
        ]
        of_one = [each for each in of_run if each.claim == claim.name]
        if of_seeds:
            seeds = [each["seeds"] for each in of_seeds]
            table = _found_over_seeds(of_seeds)
            yield claim.name, [table], _weight_of(seeds, scale)
        elif of_one:
            yield claim.name, [_found_by_one(of_one)], OBSERVATION


def _found_over_seeds(rows: Sequence[Mapping]) -> Table:
    """Findings of a variant, as means over its seeds."""
    cells = [
        [
            each["label"],
            findings.shown(each["kind"], each["mean"]),
            _ends(each["interval"], functools.partial(findings.shown, each["kind"])),
            " to ".join(
                findings.shown(each["kind"], end)
                for end in (min(each["of_seeds"]), max(each["of_seeds"]))
            ),
            str(each["seeds"]),
        ]
        for each in rows
    ]
    caption = (
        "Means over seeds. Gains are bits per byte minus those with retrieval off."
    )
    header = ("what", "mean", "95 % over seeds", "least to most", "seeds")
    return Table(caption, header, cells, len(cells) > 12)


def _found_by_one(rows: Sequence[findings.Finding]) -> Table:
    """Findings of a run, with their intervals over documents."""
    cells = [
        [
            each.label,
            findings.shown(each.kind, each.value),
            _ends(each.interval, functools.partial(findings.shown, each.kind)),
        ]
        for each in rows
    ]
    caption = "Of one run. Gains are bits per byte minus those with retrieval off."
    header = ("what", "found", "95 % over documents")
    return Table(caption, header, cells, len(cells) > 12)


def _scale(command: str) -> str | None:
    """The scale of the ablations that a command launches; None for another launch."""
    found = re.search(r"--config=(?:\S*/)?ablations(?:\.py)?(?::(\S+))?", command)
    if found is None:
        return None
    words = (found[1] or "").strip("'\"").split(",")
    return next((word for word in words if word in ablations.SCALES), "paper")


def _weight(variants: Mapping[str, Mapping], scale: str | None) -> str:
    """How much a launch counts, by its scale and the seeds of what has fewest."""
    seeds = [
        condition["seeds"]
        for of_variant in variants.values()
        for condition in of_variant["conditions"].values()
    ]
    return _weight_of(seeds, scale)


def _weight_of(seeds: Sequence[int], scale: str | None) -> str:
    """How much numbers count, by the scale and the seeds of each."""
    if scale == _SMOKE_SCALE:
        return SMOKE
    few = min(seeds, default=0) < table13.SEEDS_OF_A_CLAIM
    return OBSERVATION if few else CLAIM


def _of_launch(
    name: str, variants: Mapping[str, Mapping], scale: str | None
) -> tuple[list[Table], list[plots.Plot]]:
    if scale is None:
        names = {label: label or "the default" for label in variants}
        beside = _beside_first(variants, names)
        return [*beside, _conditions(variants, names)], _gains(name, variants, names)
    rows = table13.rows(variants, scale)
    caption = (
        "Bits per byte minus those of the default, on the same seeds and documents: the "
        "paper's (C4, 172M parameters, one run a row) and ours. Below 0 is better. A sign "
        "counts if no interval includes 0."
    )
    table = Table(caption, table13.HEADER, [table13.cells(row) for row in rows])
    shown = [
        plots.Difference(row.name, row.ours, row.seeds_interval, row.paper)
        for row in rows
        if row.ours is not None
    ]
    title = "Difference to the default"
    drawn = [plots.of_differences(f"{name}-rows", title, shown)] if shown else []
    names = dict(zip(variants, variants, strict=True))
    names |= {
        table13.label(each): row for row, each in ablations.rows_of(scale).items()
    }
    return [table, _conditions(variants, names)], drawn


def _beside_first(
    variants: Mapping[str, Mapping], names: Mapping[str, str]
) -> list[Table]:
    """Each variant beside the first one, where there are several."""
    found = {
        names[label]: of_variant["minus_first"]
        for label, of_variant in variants.items()
        if "minus_first" in of_variant
    }
    if not found:
        return []
    caption = (
        f"Bits per byte minus those of {names[next(iter(variants))]}, on the same seeds and "
        "documents: each reads passages, unless it was measured without alone. Below 0 is "
        "better."
    )
    rows = [
        [
            name,
            verdict.signed(values["bits_per_byte"]),
            _ends(values.get("interval")),
            _ends(values.get("documents_interval")),
        ]
        for name, values in found.items()
    ]
    header = ("variant", "difference", "95 % over seeds", "95 % over documents")
    return [Table(caption, header, rows)]


def _gains(
    name: str, variants: Mapping[str, Mapping], names: Mapping[str, str]
) -> list[plots.Plot]:
    """A figure of what each condition changes, for each variant."""
    shown = []
    for label, of_variant in variants.items():
        for condition in verdict.in_order(of_variant["conditions"]):
            values = of_variant["conditions"][condition]
            if "minus_off" not in values:
                continue
            head = verdict.LABELS.get(condition, condition)
            if len(variants) > 1:
                head = f"{names[label]}: {head}"
            ends = values["minus_off_interval"]
            shown.append(plots.Difference(head, values["minus_off"], ends))
    title = "Difference to retrieval off"
    return [plots.of_differences(f"{name}-gains", title, shown)] if shown else []


def _conditions(variants: Mapping[str, Mapping], names: Mapping[str, str]) -> Table:
    """Every condition of every variant."""
    caption = (
        "Every condition: off skips the cross-attention of the same model, random reads "
        "passages drawn from the database. Means over seeds; intervals are of 95 %."
    )
    is_one, rows = len(variants) == 1, []
    for label, of_variant in variants.items():
        for condition in verdict.in_order(of_variant["conditions"]):
            shown = verdict.LABELS.get(condition, condition)
            head = shown if is_one else f"{names[label]}: {shown}"
            rows.append([head, *_condition(of_variant["conditions"][condition])])
    return Table(caption, _CONDITIONS, rows, is_long=len(rows) > 12)


def _condition(values: Mapping) -> list[str]:
    gain = ["0", "", "", ""]
    if "minus_off" in values:
        below = round(values["share_below_off"] * values["seeds"])
        gain = [
            verdict.signed(values["minus_off"]),
            _ends(values["minus_off_interval"]),
            _ends(values.get("minus_off_documents_interval")),
            f"{below} of {values['seeds']}",
        ]
    ends = _ends(values.get("bits_per_byte_interval"), verdict.number)
    return [*gain, verdict.number(values["bits_per_byte"]), ends]


def _of_run(made: Mapping) -> Table:
    """The conditions of one run, with intervals over documents."""
    rows = []
    for name, values in made["conditions"].items():
        rows.append(
            [
                name,
                verdict.number(values["bits_per_byte"]),
                _ends(values.get("interval"), verdict.number),
                verdict.signed(values["minus_off"]),
                _ends(values.get("minus_off_interval")),
            ]
        )
    header = ("passages", "bits per byte", "95 %", "minus off", "95 %, over documents")
    caption = "The conditions of one run; intervals are bootstrapped over documents."
    return Table(caption, header, rows)


def _ends(ends: Sequence[float] | None, shown=verdict.signed) -> str:
    return (
        verdict.NOT_KNOWN if not ends else verdict.interval((ends[0], ends[1]), shown)
    )


def _facts(made: Mapping, provenance: Mapping) -> list[Fact]:
    """Where the numbers come from."""
    machine = provenance.get("machine") or {}
    packages = machine.get("packages") or {}
    found = []
    for name, value in (
        ("date", provenance.get("date")),
        ("commit", provenance.get("commit")),
        ("processor", _processor(machine)),
        ("system", machine.get("platform")),
        ("packages", ", ".join(f"{key} {packages[key]}" for key in packages)),
        ("units", _units(provenance)),
        ("split", made.get("split")),
    ):
        if value:
            found.append(Fact(name, str(value)))
    for database in provenance.get("databases") or ():
        documents, chunks = database.get("documents", {}), database.get("chunks", {})
        sizes = "; ".join(
            f"{split} {documents.get(split, 0):,} documents, {chunks[split]:,} chunks"
            for split in sorted(chunks)
        )
        sums = (str(database.get("fingerprint")), str(database.get("dataset")))
        corpus = (
            f"{database.get('corpus')}, chunks of {database.get('chunk_len')} tokens"
        )
        told = f"{corpus}: {sizes}; fingerprints of the database and its sequences"
        found.append(Fact("data", told, sums))
    return found or [Fact("machine, data and date", "not recorded")]


def _processor(machine: Mapping) -> str:
    name, cores = machine.get("processor"), machine.get("cores")
    return f"{name}, {cores} cores" if name and cores else ""


def _units(provenance: Mapping) -> str:
    if not provenance.get("units"):
        return ""
    hours = provenance["unit_seconds"] / 3600
    return (
        f"{provenance['finished']} of {provenance['units']} finished, {hours:.2f} hours "
        "one after the other"
    )


class _Parser(argparse.ArgumentParser):
    """Mistakes are one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (python -m experiments.report.evidence --help)")


def main(words: Sequence[str]) -> None:
    """Writes the report that the words ask for."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--out", type=Path, default=_OUT, metavar="DIR")
    args = parser.parse_args(words)
    if not args.results.is_dir():
        raise ValueError(f"{args.results} is no folder of results")
    write(args.results, args.out)


if __name__ == "__main__":
    protect_streams()
    sys.exit(command_line.run(main, sys.argv[1:]))
