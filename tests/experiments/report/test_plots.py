"""Figures show the numbers that they are made of."""

import numpy as np
import pytest

from experiments.report import plots
from tests import run_files


def test_the_running_mean_keeps_a_line_straight_at_its_ends():
    np.testing.assert_allclose(plots.running_mean(np.full(9, 3.0), 5), 3.0)
    smooth = plots.running_mean(np.array([0.0, 3.0, 0.0, 3.0]), 3)
    np.testing.assert_allclose(smooth, [1.5, 1.0, 2.0, 1.5])


def test_a_figure_shows_its_numbers():
    _, (_, _, figure) = plots.of_results(run_files.results()["conditions"])
    drawn = [tuple(line.get_xdata()) for line in figure.axes[0].lines]
    assert (-0.1512, -0.0523) in drawn
    assert any(len(x) == 1 and x[0] == pytest.approx(-0.1) for x in drawn)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["off", "on", "random"]


def test_runs_and_prompts_show_their_intervals():
    found = run_files.retrofit_results()
    (runs,) = plots.of_runs(found["by_longest_run"])
    drawn = [tuple(line.get_xdata()) for line in runs.figure.axes[0].lines]
    assert (-0.6, -0.4) in drawn
    labels = [label.get_text() for label in runs.figure.axes[0].get_yticklabels()]
    assert labels == ["0 to 7", "8 to 15", "16 and more"]
    assert "16 and more tokens: on, untrained" in runs.description
    (prompt,) = plots.of_prompt(found["prompt"])
    drawn = [tuple(line.get_xdata()) for line in prompt.figure.axes[0].lines]
    assert (-0.25, -0.15) in drawn
    assert plots.of_prompt(None) == plots.of_runs([]) == plots.of_gates({}) == []


def test_gates_show_heads_before_and_after():
    (plot,) = plots.of_gates(run_files.retrofit_results()["gates"])
    first, attention, second, unknown = plot.figure.axes
    assert [bar.get_height() for bar in first.patches] == [0.1, 1.4, -0.2]
    assert [bar.get_height() for bar in attention.patches] == [5.0, 80.0, 30.0]
    assert not unknown.patches
    before = [segment[0][1] for segment in second.collections[0].get_segments()]
    assert before == [0.0, 0.0, 1.0]
    assert second.get_ylabel() == "layer 20"
    alone = {"2": {"before": None, "after": [0.5]}}
    assert plots.of_gates(alone)[0].description.endswith("layer 2: 0.50")
    assert plots.svg(plot).count("<image") == 0  # the page may load none


def test_differences_stand_beside_those_of_others():
    rows = [
        plots.Difference("both", 0.25, (0.2, 0.3), theirs=0.125),
        plots.Difference("ours alone", -0.5),
    ]
    plot = plots.of_differences("rows", "Beside", rows)
    assert plot.description == "Beside: both +0.2500, ours alone −0.5000"
    axes = plot.figure.axes[0]
    drawn = {tuple(line.get_xdata()) for line in axes.lines}
    assert {(0.25,), (0.2, 0.3), (0.125,), (-0.5,)} <= drawn
    assert [text.get_text() for text in plot.figure.legends[0].texts] == [
        "ours, 95 % over seeds",
        "paper",
    ]
    assert len(plots.of_differences("x", "Ours", rows[1:]).figure.legends[0].texts) == 1
