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
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments.report import retrofit, verdict

INK, FAINT = "#222222", "#d0d0d0"
COLOURS = {
    "off": "#6b6b6b",
    "untrained": "#009e73",
    "on": "#0072b2",
    "random": "#d55e00",
    "prompt": "#a8508a",
    "shuffled": "#b87900",
    "match": "#2f6f9f",
    "continuation": "#4a90b8",
    "oracle": "#6b4fbb",
    "knn": "#857000",
}
_MARKERS = {"off": "o", "untrained": "^", "on": "s", "random": "D", "prompt": "v"}
_MARKERS |= {"shuffled": "d", "match": "<", "continuation": ">", "oracle": "*"}
_MARKERS |= {"knn": "P"}
_OTHER = "random"  # of whose colour and marker is what no page knows
# More in one row of a figure could not be told apart.
_BY_RUN = ("untrained", "on", "random")
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


class Difference(NamedTuple):
    """A row of a figure: a difference in bits per byte, and somebody else's."""

    label: str
    ours: float
    interval: Sequence[float] | None = None
    theirs: float | None = None


def of_results(conditions: Mapping) -> list[Plot]:
    """Bits per byte of each condition and what it changes, with their intervals."""
    if len(conditions) == 1:  # a baseline's
        return []
    rows = {name: conditions[name] for name in verdict.in_order(conditions)}
    values = [f"{name} {verdict.number(rows[name]['bits_per_byte'])}" for name in rows]
    height = 1.1 + 0.3 * len(rows)
    figure, axes = _empty(height, "Bits per byte on held-out text")
    _points(axes, rows, "bits_per_byte", "interval")
    axes.set_xlabel("bits per byte, 95 % interval (less is better)", **_FONT)
    by_condition = f"Bits per byte by condition: {', '.join(values)}"
    made = [Plot("bits-per-byte", by_condition, figure)]
    figure, axes = _empty(height, "Difference to retrieval off")
    axes.axvline(0, color=COLOURS["off"], linewidth=1, zorder=1)
    _points(axes, rows, "minus_off", "minus_off_interval")
    axes.set_xlabel("bits per byte, 95 % interval (below 0 is better)", **_FONT)
    to_off = f"Difference in bits per byte to retrieval off: {_changes(rows)}"
    return [*made, Plot("difference", to_off, figure)]


def of_prompt(beside: Mapping | None) -> list[Plot]:
    """What the same passages change in the prompt and by cross-attention."""
    if beside is None:
        return []
    order = (*verdict.ORDER[1:], "prompt")
    rows = {n: beside["conditions"][n] for n in order if n in beside["conditions"]}
    figure, axes = _empty(
        1.0 + 0.3 * len(rows), "Difference to retrieval off, on the same text"
    )
    axes.axvline(0, color=COLOURS["off"], linewidth=1, zorder=1)
    _points(axes, rows, "minus_off", "minus_off_interval")
    axes.set_xlabel("bits per byte, 95 % interval (below 0 is better)", **_FONT)
    told = f"Difference in bits per byte on the same text: {_changes(rows)}"
    return [Plot("prompt", told, figure)]


def of_runs(bins: Sequence[Mapping]) -> list[Plot]:
    """What retrieval changes where chunks share more or less with their passages."""
    bins = [entry for entry in bins if entry["chunks"]]
    if not bins:
        return []
    shown = [n for n in _BY_RUN if n in bins[0]["conditions"]]
    figure, axes = _empty(1.2 + 0.75 * len(bins), "Difference to retrieval off")
    axes.axvline(0, color=COLOURS["off"], linewidth=1, zorder=1)
    for place, entry in enumerate(bins):
        for line, name in enumerate(shown):
            height = place + 0.2 * (line - (len(shown) - 1) / 2)
            _point(axes, name, height, entry["conditions"][name])
    names = [retrofit.bin_name(entry) for entry in bins]
    axes.set_yticks(range(len(bins)), labels=names)
    axes.set_ylabel("shared run, tokens", **_FONT)
    axes.set_xlabel("bits per byte, 95 % interval (below 0 is better)", **_FONT)
    _as_rows(axes, len(bins))
    markers = [
        Line2D(
            [], [], color=COLOURS[n], marker=_MARKERS[n], linewidth=2, label=_label(n)
        )
        for n in shown
    ]
    _legend(figure, markers)
    told = "; ".join(
        f"{name} tokens: {_changes({n: entry['conditions'][n] for n in shown})}"
        for name, entry in zip(names, bins, strict=True)
    )
    label = f"Difference in bits per byte by longest run of shared tokens: {told}"
    return [Plot("shared-runs", label, figure)]


def of_gates(gates: Mapping) -> list[Plot]:
    """Gates of heads before and after training, and their attention: a row for a layer."""
    if not gates:
        return []
    figure = Figure(figsize=(_WIDTH_IN, 0.9 + 0.8 * len(gates)), layout="constrained")
    all_axes = figure.subplots(len(gates), 2, sharex=True, sharey="col", squeeze=False)
    for (left, right), (layer, of_layer) in zip(all_axes, gates.items(), strict=True):
        _style(left)
        _style(right)
        heads = np.arange(len(of_layer["after"]))
        after = left.bar(heads, of_layer["after"], width=0.5, color=COLOURS["on"])
        after.set_label("after training")
        if of_layer["before"] is not None:
            ends = heads - 0.38, heads + 0.38
            before = left.hlines(of_layer["before"], *ends, lw=2)
            before.set(color=COLOURS["untrained"], label="before training")
        left.axhline(0, color=FAINT, linewidth=0.8)
        left.set_ylabel(f"layer {layer}", **_FONT)
        left.yaxis.set_major_locator(MaxNLocator(nbins=3))
        shares = of_layer.get("attention")
        if shares is not None:
            right.bar(heads, 100 * np.array(shares), width=0.5, color=COLOURS["on"])
        right.set_ylim(0, 100)
    all_axes[0, 0].set_title("gate", **_FONT)
    all_axes[0, 1].set_title("attention to passages, %", **_FONT)
    for axes in all_axes[-1]:
        axes.set_xlabel("head", **_FONT)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    _legend(figure, all_axes[0, 0].get_legend_handles_labels()[0])
    told = "; ".join(
        f"layer {layer}: {_gates_in_words(each)}" for layer, each in gates.items()
    )
    return [Plot("gates", f"Gates by head, and attention to passages: {told}", figure)]


def of_differences(name: str, title: str, rows: Sequence[Difference]) -> Plot:
    """What each row changes, with its interval, and what others have found beside it."""
    figure, axes = _empty(1.3 + 0.24 * len(rows), title)
    axes.axvline(0, color=COLOURS["off"], linewidth=1, zorder=1)
    for place, row in enumerate(rows):
        if row.theirs is not None:
            axes.plot([row.theirs], [place], "o", color=COLOURS["off"], markersize=7)
        if row.interval is not None:
            ends = row.interval
            axes.plot(ends, [place, place], color=COLOURS["on"], linewidth=2)
        axes.plot([row.ours], [place], "s", color=COLOURS["on"], markersize=5)
    axes.set_yticks(range(len(rows)), labels=[row.label for row in rows])
    _as_rows(axes, len(rows))
    axes.set_xlabel("bits per byte (below 0 is better)", **_FONT)
    markers = [
        _marker("s", "on", "ours, 95 % over seeds"),
        _marker("o", "off", "paper"),
    ]
    _legend(
        figure, markers if any(row.theirs is not None for row in rows) else markers[:1]
    )
    told = ", ".join(f"{row.label} {verdict.signed(row.ours)}" for row in rows)
    return Plot(name, f"{title}: {told}", figure)


def _marker(marker: str, colour: str, label: str) -> Line2D:
    width = 0 if marker == "o" else 2
    return Line2D(
        [], [], color=COLOURS[colour], marker=marker, linewidth=width, label=label
    )


def _gates_in_words(of_layer: Mapping) -> str:
    said = ", ".join(verdict.number(gate, 2) for gate in of_layer["after"])
    if of_layer["before"] is not None:
        before = ", ".join(verdict.number(gate, 2) for gate in of_layer["before"])
        said = f"{before} before training, {said} after"
    shares = of_layer.get("attention")
    if shares is None:
        return said
    return f"{said}; attention {', '.join(map(verdict.percent, shares))}"


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


def _changes(rows: Mapping) -> str:
    return ", ".join(
        f"{_label(name)} {verdict.signed(row['minus_off'])} (95 % interval "
        f"{verdict.interval(row['minus_off_interval'], verdict.signed)})"
        for name, row in rows.items()
        if name != "off"
    )


def _label(name: str) -> str:
    return verdict.LABELS.get(name, name)


def _empty(height_in: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    _style(axes)
    return figure, axes


def _legend(figure: Figure, handles: Sequence) -> None:
    """A line below a figure that says what its colours are."""
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=3,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
    )


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def _points(axes: Axes, conditions: Mapping, value: str, interval: str) -> None:
    """A row for each condition."""
    for place, (name, values) in enumerate(conditions.items()):
        _point(axes, name, place, values, value, interval)
    axes.set_yticks(range(len(conditions)), labels=list(map(_label, conditions)))
    _as_rows(axes, len(conditions))


def _point(
    axes: Axes,
    name: str,
    height: float,
    values: Mapping,
    value: str = "minus_off",
    interval: str = "minus_off_interval",
) -> None:
    """A marker, and a bar where its interval is known."""
    colour, ends = COLOURS.get(name, COLOURS[_OTHER]), values[interval]
    if all(map(math.isfinite, ends)):
        axes.plot(ends, [height, height], color=colour, linewidth=2)
    marker = _MARKERS.get(name, _MARKERS[_OTHER])
    axes.plot([values[value]], [height], marker, color=colour, markersize=7)


def _as_rows(axes: Axes, count: int) -> None:
    axes.set_ylim(count - 0.5, -0.5)  # the first on top
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
