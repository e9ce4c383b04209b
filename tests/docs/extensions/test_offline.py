"""What a browser would fetch from another host is found in pages and in style sheets."""

import importlib.util

import pytest

from tests.commands import ROOT

pytest.importorskip("sphinx", reason="make install-docs")


@pytest.fixture(scope="module")
def requests():
    path = ROOT / "docs" / "extensions" / "offline.py"
    spec = importlib.util.spec_from_file_location("offline", path)
    offline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(offline)
    return offline.requests


@pytest.mark.parametrize(
    "text",
    [
        '<script async src="https://cdn.example/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/f.css">',
        "<img src='HTTP://a.example/x.png'>",
        "<style>@import 'https://a.example/f.css';</style>",
        '<p style="background: url(https://a.example/x.png)">',
    ],
)
def test_what_is_fetched_from_elsewhere_is_found(requests, text):
    assert len(requests(text, ".html")) == 1


def test_links_and_own_files_are_no_requests(requests):
    page = '<a href="https://arxiv.org">a</a><img src="_images/a.svg">'
    page += (
        '<link rel="canonical" href="https://a.example"><script src="b.js"></script>'
    )
    assert not requests(page, ".html")
    assert not requests("a { background: url(data:image/png;base64,//8=) }", ".css")
    assert requests("@font-face { src: url('//a.example/f.woff') }", ".css")
