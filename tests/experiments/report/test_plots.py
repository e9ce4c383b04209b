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
