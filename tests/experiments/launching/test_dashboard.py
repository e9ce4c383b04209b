"""The page of a sweep: every unit is in it, and what units have written is text alone."""

import html.parser
import re

import pytest

from experiments import launch
from experiments.launching import dashboard
from tests.experiments.launching import swept
from tests.experiments.launching.units import unit

_VOID = {"meta", "img", "link", "br"}


class _Page(html.parser.HTMLParser):
    """The elements of a page with their attributes, and the text of its cells."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.texts.append(data)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """The page of a sweep with units of all kinds, as the command writes it."""
    out = tmp_path_factory.mktemp("a sweep")
    swept.write(out)
    assert launch.main(["dashboard", str(out)]) == 0
    return (out / dashboard.FILE).read_text()


@pytest.fixture(scope="module")
def page(text) -> _Page:
    return _Page(text)


def test_every_unit_has_a_row_and_those_with_steps_a_curve_in_each_chart(page):
    rows = [attrs["data-unit"] for tag, attrs in page.found if tag == "tr" and attrs]
    assert rows == [f"unit-{number:03}" for number in range(7)]  # the eighth is no unit
    curves = [attrs for tag, attrs in page.found if tag == "polyline"]
    assert len(curves) == 4 * 4
    # Seeds of one variant have a colour in common, and differ in their dashes.
    first, second, third = curves[:3]
    assert first["stroke"] == second["stroke"] != third["stroke"]
    assert first["stroke-dasharray"] == third["stroke-dasharray"]
    assert first["stroke-dasharray"] != second["stroke-dasharray"]


def test_curves_lie_within_their_charts(page):
    for tag, attrs in page.found:
        if tag == "polyline":
            places = [
                tuple(map(float, at.split(","))) for at in attrs["points"].split()
            ]
            steps = [x for x, _ in places]
            assert steps == sorted(steps) and 52 <= steps[0] and steps[-1] <= 430
            assert all(-250 <= y <= 216 for _, y in places)


def test_cells_have_the_numbers_by_which_they_are_sorted(page, text):
    cells = [attrs for tag, attrs in page.found if tag == "td"]
    width = len(cells) // 7
    rate = [row["data-number"] for row in cells[2 : 4 * width : width]]
    assert rate == ["0.001", "0.001", "0.003", "0.003"]
    assert page.texts[page.texts.index("unit-001") + 1] == "finished"
    # Of 278 s, with a fifth of the first 100 s of steps trained again: 180 s.
    assert "65%" in page.texts
    assert text.count('<button type="button">') == width


def test_what_units_have_written_is_text_and_obeys_nobody(page, text):
    tags = {tag for tag, _ in page.found}
    assert [tag for tag, _ in page.found].count("script") == 1 and "img" not in tags
    assert not page.open  # all that was opened is closed again, in its order
    assert "\u202e" not in text and "\x1b" not in text
    for tag, attrs in page.found:
        assert not {"src", "href", "onclick", "onload"} & attrs.keys(), tag
    assert re.search(r"script-src 'sha256-[\w+/=]+'", text) and "url(h" not in text
    assert swept.HOSTILE[:20] in "".join(page.texts)  # and it is shown
    assert "nan" not in "".join(attrs.get("points", "") for _, attrs in page.found)


def test_a_sweep_that_has_not_begun_has_a_page(tmp_path):
    unit(tmp_path)
    path = tmp_path / "elsewhere.html"
    assert launch.main(["dashboard", str(tmp_path), f"--out={path}"]) == 0
    assert "No unit has written a step yet" in path.read_text()


def test_ranges_without_width_and_long_curves_are_drawn():
    assert dashboard._around(2.0, 2.0) == (1.9, 2.1)
    assert dashboard._around(0.0, 0.0) == (-1.0, 1.0)
    line = [(step, 0.0) for step in range(10_001)]
    thinned = dashboard._thinned(line)
    assert len(thinned) <= 401 and thinned[-1] == line[-1]
    assert dashboard._ticks(0, 700) == [0, 200, 400, 600]
    assert dashboard._short(20_000) == "20k" and dashboard._short(1e-3) == "0.001"
