"""The report's figures, from rows of numbers, as SVG for the page and PNG for a README.

Small figures that the page puts side by side, or below one another on a phone. Colours
(Okabe and Ito's, safe for the colour-blind) become CSS variables in the SVG, so that the
page's light and dark themes hold for the figures too.
"""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments.report import verdict

INK, FAINT = "#222222", "#d0d0d0"
COLOURS = {"off": "#6b6b6b", "on": "#0072b2", "random": "#d55e00"}
_MARKERS = {"off": "o", "on": "s", "random": "D"}
_CSS_NAMES = {INK: "--ink", FAINT: "--faint"} | {
    colour: f"--{name}" for name, colour in COLOURS.items()
}
_WIDTH_IN = 4.1
_FONT: dict[str, Any] = {"fontsize": 9, "color": INK}
_TICKS: dict[str, Any] = {"nbins": 5, "steps": [1, 2, 2.5, 5, 10]}


class Plot(NamedTuple):
    """A figure of the report; the description is for those who can't see it."""

    name: str
    description: str
    figure: Figure


def of_results(conditions: Mapping) -> list[Plot]:
    """Bits per byte of each condition and what it changes, with their intervals."""
    if len(conditions) == 1:  # a baseline's
        return []
    rows = {name: conditions[name] for name in verdict.ORDER if name in conditions}
    values = [f"{name} {verdict.number(rows[name]['bits_per_byte'])}" for name in rows]
    changes = [
        f"{name} {verdict.signed(row['minus_off'])} (95 % interval "
        f"{verdict.interval(row['minus_off_interval'], verdict.signed)})"
        for name, row in rows.items()
        if name != "off"
    ]
    figure, axes = _empty(2.0, "Bits per byte on held-out text")
    _points(axes, rows, "bits_per_byte", "interval")
    axes.set_xlabel("bits per byte, 95 % interval (less is better)", **_FONT)
    by_condition = f"Bits per byte by condition: {', '.join(values)}"
    made = [Plot("bits-per-byte", by_condition, figure)]
    figure, axes = _empty(2.0, "Difference to retrieval off")
    axes.axvline(0, color=COLOURS["off"], linewidth=1, zorder=1)
    _points(axes, rows, "minus_off", "minus_off_interval")
    axes.set_xlabel("bits per byte, 95 % interval (below 0 is better)", **_FONT)
    to_off = f"Difference in bits per byte to retrieval off: {', '.join(changes)}"
    return [*made, Plot("difference", to_off, figure)]


def of_training(rows: Sequence[Mapping]) -> list[Plot]:
    """Loss, learning rate and speed over steps, from the rows of the metrics."""
    if not rows:
        return []
    first, last = rows[0], rows[-1]
    descent = (
        f"Training loss in bits per byte: {first['bits_per_byte']:.2f} at step "
        f"{first['step']}, {last['bits_per_byte']:.2f} at step {last['step']}"
    )
    peak = max(row["learning_rate"] for row in rows)
    return [
        Plot("loss", descent, _loss(rows)),
        Plot(
            "learning-rate",
            f"Learning rate over steps, {peak:g} at most",
            _line(rows, "learning_rate", "Learning rate", "learning rate"),
        ),
        Plot(
            "speed",
            f"Tokens per second, {last['tokens_per_s']:,.0f} in the end",
            _line(rows, "tokens_per_s", "Training speed", "tokens/s", "{:,.0f}"),
        ),
    ]


def _loss(rows: Sequence[Mapping]) -> Figure:
    """Training loss over steps: every logged value, and their running mean."""
    steps, values = _series(rows, "bits_per_byte")
    window, colour = 2 * (len(values) // 40) + 1, COLOURS["on"]
    if window > 1:
        title = f"Training loss, and its mean over {window} points"
        figure, axes = _empty(3.6, title)
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(steps, running_mean(values, window), color=colour, linewidth=1.8)
    else:
        figure, axes = _empty(3.6, "Training loss")
        axes.plot(steps, values, color=colour, linewidth=1.8, marker=".")
    _over_steps(axes, "bits per byte")
    return figure


def _line(
    rows: Sequence[Mapping], name: str, title: str, unit: str, ticks: str = "{:g}"
) -> Figure:
    figure, axes = _empty(1.8, title)
    axes.plot(*_series(rows, name), color=INK, linewidth=1.5)
    axes.set_ylim(bottom=0)
    _over_steps(axes, unit, ticks)
    return figure


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over an odd number of points, over those there are at the ends."""
    ones = np.ones(window)
    counts = np.convolve(np.ones(len(values)), ones, mode="same")
    return np.convolve(values, ones, mode="same") / counts


def svg(plot: Plot) -> str:
    """An <svg> element to put into a page: themed, described, with ids of its own."""
    buffer = io.StringIO()
    # Without dates and names of programs the same numbers give the same bytes.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name}):
        plot.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _CSS_NAMES.items():
        text = text.replace(colour, f"var({variable})")
    # All figures stand in one page, where an id must be the only one.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{plot.name}-", text)
    label = html.escape(plot.description, quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def png(figure: Figure) -> bytes:
    """The figure on white, at twice a screen's resolution."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def _empty(height_in: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def _points(axes: Axes, conditions: Mapping, value: str, interval: str) -> None:
    """A row for each condition: a marker, and a bar where its interval is known."""
    for place, name in enumerate(conditions):
        colour, ends = COLOURS[name], conditions[name][interval]
        if all(map(math.isfinite, ends)):
            axes.plot(ends, [place, place], color=colour, linewidth=2)
        middle = conditions[name][value]
        axes.plot([middle], [place], _MARKERS[name], color=colour, markersize=7)
    axes.set_yticks(range(len(conditions)), labels=list(conditions))
    axes.set_ylim(len(conditions) - 0.5, -0.5)  # the first on top
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(**_TICKS))
    axes.margins(x=0.08)


def _series(rows: Sequence[Mapping], name: str) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array([row["step"] for row in rows])
    return steps, np.array([row[name] for row in rows], float)


def _over_steps(axes: Axes, unit: str, ticks: str = "{:g}") -> None:
    axes.set_xlabel("step", **_FONT)
    axes.set_ylabel(unit, **_FONT)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(**_TICKS, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(**_TICKS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: ticks.format(value)))


def distances(distances_T: np.ndarray) -> Figure:
    """Histogram of chunks' squared distances to their nearest neighbours."""
    figure, axes = _empty(2.0, "How near the nearest neighbours are")
    axes.hist(distances_T, bins=60, range=(0, 2), color=COLOURS["on"])
    axes.set_xlabel("squared distance of unit vectors (0 = the same text)", **_FONT)
    axes.set_ylabel("chunks", **_FONT)
    return figure
