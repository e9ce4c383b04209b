"""One page for a sweep: curves of all units together, their time, and a table to sort.

The page is one file that asks nothing of other hosts. What units have written is shown as
text alone, whoever wrote it: its template escapes all, and its numbers are only numbers.
"""

import base64
import dataclasses
import hashlib
import importlib.resources
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.storage.files import read_json, write_file
from data_pipeline.storage.printing import printable
from experiments.launching import status, sweeps, work_units
from experiments.report import templates
from retro_jax.runs import goodput
from retro_jax.runs.metrics import duration, read_metrics

FILE = "dashboard.html"
# What is drawn over steps, with what it is called.
_CURVES = {
    "bits_per_byte": "Bits per byte in training",
    "tokens_per_s": "Tokens a second",
    "gradient_norm": "Norm of the gradient",
    "learning_rate": "Learning rate",
}
_WIDTH, _HEIGHT = 440, 250  # of a chart, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 34  # between its edges and its curves
_POINTS = 400  # of a curve: more are not seen
_COLOURS, _DASHES = 8, ("", "7 3", "2 3", "9 3 2 3")
_BEYOND = 0.02  # of all values, which the first steps' may exceed without being seen


def write(out: Path, path: Path) -> None:
    """Writes the page of a launch.

    Raises:
        ValueError: if the folder holds no work units.
    """
    units = work_units.read(out)
    write_file(path, render(page(units, out.name)))


def page(units: Sequence[work_units.Unit], name: str) -> dict[str, Any]:
    """All that the page says."""
    rows = status.rows(units)
    styles = _styles(units)
    metrics = [
        read_metrics(unit.folder / "metrics" / "metrics.jsonl") for unit in units
    ]
    spent = [row["goodput"] for row in rows]
    states: dict[str, int] = {}
    for row in rows:
        states[row["state"]] = states.get(row["state"], 0) + 1
    drawn = [_chart(key, units, metrics, styles) for key in _CURVES]
    total = goodput.total([one for one in spent if one])
    return {
        "name": printable(name),
        "states": [f"{count} {state}" for state, count in states.items()],
        "total": goodput.line(total) if total else "",
        "written": time.strftime("%Y-%m-%d %H:%M %Z"),
        "charts": [chart for chart in drawn if chart],
        "parts": [*goodput.PARTS, goodput.REDONE, goodput.RESTARTS],
        "bars": [
            _bar(unit.name, one) for unit, one in zip(units, spent, strict=True) if one
        ],
        "table": _table(units, rows, styles),
        "failures": [
            (row["unit"], row["state"], printable(str(row["last_line"])))
            for row in rows
            if row["state"] in status.BAD
        ],
    }


def render(told: Mapping[str, Any]) -> str:
    """The page as HTML; all that it is told is escaped."""
    here = importlib.resources.files(__package__)
    script = (here / "dashboard.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    environment = templates.environment(__package__, is_html=True)
    return environment.get_template("dashboard.html").render(
        page=told, script=script, script_hash=base64.b64encode(digest).decode()
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Style:
    """How a unit is drawn everywhere: units that differ in their seed alone share a colour."""

    colour: int
    dash: str


def _styles(units: Sequence[work_units.Unit]) -> list[Style]:
    variants: dict[str, int] = {}
    found = []
    for unit in units:
        variant = sweeps.label(sweeps.without_seed(unit.point))
        number = variants[variant] = variants.get(variant, -1) + 1
        colour = list(variants).index(variant) % _COLOURS
        found.append(Style(colour, _DASHES[number % len(_DASHES)]))
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """A unit's line in a chart, in the chart's units."""

    unit: str
    settings: str
    style: Style
    points: str


@dataclasses.dataclass(frozen=True, slots=True)
class Chart:
    """A metric of all units over steps."""

    title: str
    curves: list[Curve]
    x_ticks: list[tuple[float, str]]  # place, and what stands there
    y_ticks: list[tuple[float, str]]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = _HEIGHT - _BOTTOM


def _chart(
    key: str,
    units: Sequence[work_units.Unit],
    metrics: Sequence[Sequence[Mapping]],
    styles: Sequence[Style],
) -> Chart | None:
    """The chart of a metric; None if no unit has written it."""
    lines = [_thinned(list(_numbers(rows, key))) for rows in metrics]
    values = sorted(value for line in lines for _, value in line)
    if not values:
        return None
    last_step = max(step for line in lines for step, _ in line)
    top = values[min(len(values) - 1, int(len(values) * (1 - _BEYOND)))]
    low, high = _around(values[0], top)
    x_scale = (_WIDTH - _LEFT - _RIGHT) / max(last_step, 1)
    y_scale = (_HEIGHT - _TOP - _BOTTOM) / (high - low)

    def place(step: float, value: float) -> str:
        x, y = _LEFT + step * x_scale, _HEIGHT - _BOTTOM - (value - low) * y_scale
        return f"{x:.1f},{max(y, -_HEIGHT):.1f}"

    curves = [
        Curve(
            unit.name,
            printable(sweeps.label(unit.point)),
            style,
            " ".join(place(*point) for point in line),
        )
        for unit, style, line in zip(units, styles, lines, strict=True)
        if line
    ]
    x_ticks = [(_LEFT + tick * x_scale, _short(tick)) for tick in _ticks(0, last_step)]
    y_ticks = [
        (_HEIGHT - _BOTTOM - (tick - low) * y_scale, _short(tick))
        for tick in _ticks(low, high)
    ]
    return Chart(_CURVES[key], curves, x_ticks, y_ticks)


def _numbers(rows: Sequence[Mapping], key: str) -> Iterator[tuple[float, float]]:
    for row in rows:
        step, value = status.number(row.get("step")), status.number(row.get(key))
        if step is not None and value is not None and step >= 0:
            yield step, value


def _thinned(line: list) -> list:
    """So many points at most, the last one among them."""
    stride = -(-len(line) // _POINTS)
    return line if stride < 2 else [*line[:-1:stride], line[-1]]


def _around(low: float, high: float) -> tuple[float, float]:
    """A range with a little room, which is never empty."""
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Some three to six round numbers of a range."""
    raw = (high - low) / 4
    if not raw > 0:
        return [low]
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next((n * unit for n in (1, 2, 5, 10) if n * unit >= raw), 10 * unit)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]


def _short(value: float) -> str:
    """A number that fits beside an axis."""
    if abs(value) < 1e-12:
        return "0"
    if 1000 <= abs(value) < 1e6:
        return f"{value / 1000:g}k"
    return f"{value:.3g}"


def _bar(name: str, spent: Mapping) -> dict[str, Any]:
    """A unit's time as shares, in the order of its parts."""
    wall_s = max(spent["wall_s"], 1e-9)
    shares = [
        (part, max(seconds, 0.0) / wall_s * 100, duration(max(seconds, 0.0)))
        for part, seconds in spent["seconds"].items()
    ]
    return {"unit": name, "shares": shares, "wall": duration(spent["wall_s"])}


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """What a cell shows, and the number by which it is sorted, if it is one."""

    text: str
    number: float | None = None


def _table(
    units: Sequence[work_units.Unit], rows: Sequence[Mapping], styles: Sequence[Style]
) -> dict[str, Any]:
    """Columns and rows; the settings of the sweep have a column each."""
    swept = list(dict.fromkeys(name for unit in units for name in unit.point))
    conditions = [_conditions(unit) for unit in units]
    measured = list(dict.fromkeys(name for found in conditions for name in found))
    columns = ["unit", "state", *swept, "step", "loss"]
    columns += [f"{name}, bits per byte" for name in measured]
    columns += ["tokens/s", "useful", "time", "starts"]
    made = []
    for unit, row, found, style in zip(units, rows, conditions, styles, strict=True):
        spent = row["goodput"] or {}
        cells = [Cell(unit.name), Cell(str(row["state"]))]
        cells += [_setting(unit.point.get(name, "")) for name in swept]
        cells += [
            Cell(f"{row['step']:,}", row["step"]),
            _figure(row["loss_nats_per_token"], ".4f"),
        ]
        cells += [_figure(found.get(name), ".4f") for name in measured]
        cells += [
            _figure(row["tokens_per_s"], ",.0f"),
            _figure(spent.get("useful_share"), ".0%"),
            Cell(duration(spent["wall_s"]), spent["wall_s"]) if spent else Cell("-"),
            _figure(row["starts"], "d"),
        ]
        made.append({"unit": unit.name, "style": style, "cells": cells})
    return {"columns": [printable(name) for name in columns], "rows": made}


def _setting(text: str) -> Cell:
    try:
        value = float(text)
    except ValueError:
        return Cell(printable(text))
    return Cell(text, value if math.isfinite(value) else None)


def _figure(value: float | None, form: str) -> Cell:
    return Cell("-") if value is None else Cell(format(value, form), value)


def _conditions(unit: work_units.Unit) -> dict[str, float]:
    """Bits per byte of each condition that was evaluated."""
    results = read_json(unit.folder / "evaluation" / "results.json") or {}
    conditions = results.get("conditions")
    if not isinstance(conditions, dict):
        return {}
    found = {
        name: status.number(values.get("bits_per_byte"))
        for name, values in list(conditions.items())[:8]
        if isinstance(values, dict)
    }
    return {name: value for name, value in found.items() if value is not None}
