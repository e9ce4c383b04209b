"""Templates stand in two places, begin alike and escape what others wrote."""

import pytest

from experiments.report import templates

_PAGES = (
    ("experiments.report", "report.html"),
    ("experiments.report", "evidence.html"),
    ("experiments.launching", "dashboard.html"),
)


@pytest.mark.parametrize(("package", "name"), _PAGES)
def test_every_page_begins_with_the_one_head(package, name):
    loader = templates.environment(package, is_html=True).loader
    text, *_ = loader.get_source(templates.environment(is_html=True), name)
    assert text.count('{% include "head.html" %}') == 1
    for tag in ("<html", "<head>", "<meta"):
        assert tag not in text


@pytest.mark.parametrize("script", [None, "abc"])
def test_the_head_loads_nothing_and_runs_no_more_than_one_script(script):
    told = {} if script is None else {"script_hash": script}
    head = templates.environment(is_html=True).get_template("head.html")
    page = head.render(title="<b>", width="9rem", **told)
    assert "<title>&lt;b&gt;</title>" in page and "max-width: 9rem" in page
    assert "default-src 'none'" in page
    assert ("script-src 'sha256-abc'" in page) == (script is not None)
    assert page.count("script-src") == (script is not None)


def test_markdown_is_escaped_in_its_own_way():
    made = templates.environment(is_html=False).from_string("{{ text }}")
    assert made.render(text="*a* <b>") != "*a* <b>"
