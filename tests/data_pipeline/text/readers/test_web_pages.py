"""HTML becomes what a person reads on the page."""

import time
from pathlib import Path

import pytest

from tests.corpus_files import COMPRESS, read

PAGE = """<!DOCTYPE html><html lang=en><head><meta charset="utf-8">
<title>Invoices &amp; refunds
 | Help</title><style>p { color: red }</style>
<script>var x = "<p>not text</p>";</script></head><body>
<nav><ul><li><a href=/>Home</a><nav>within</nav><li>About</ul></nav>
<div role="navigation"><div>Crumbs</div>more crumbs</div>
<header><h1>Refunds</h1></header><!-- a comment -->
<p>A refund is paid
   within <b>14</b>&nbsp;days &lt;of&gt; the order.<br>Or later.</p>
<svg><title>drawing</title><text>drawn</text></svg>
<pre>code {
  stays
}</pre><ul><li>one<li>two</ul>
<table><tr><td>a</td><td>b</td></tr></table><noscript>enable</noscript>
<button>Send</button><iframe src=x>frame</iframe></body></html>"""
TEXT = """Refunds

A refund is paid within 14\xa0days <of> the order.
Or later.

code {
  stays
}

one
two

a b"""


@pytest.mark.parametrize(
    "name", ["a.html", "a.htm", "a.HTML.gz", "a", "a.php", "a.txt"]
)
def test_a_page(name: str, tmp_path: Path) -> None:
    data = COMPRESS[Path(name).suffix if name.endswith(".gz") else ""](PAGE.encode())
    (tmp_path / name).write_bytes(data)
    ((document,), skipped) = read(tmp_path)
    assert document.title == "Invoices & refunds | Help"
    assert document.text == TEXT
    assert (document.id, skipped) == (name, {})


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("windows-1251", "Привет, мир"),
        ("Shift_JIS", "吾輩は猫である"),
        ("no-such-charset", "caf\u00e9"),
    ],
)
def test_the_encoding_that_a_page_tells(
    charset: str, text: str, tmp_path: Path
) -> None:
    page = f'<meta http-equiv=x content="text/html; charset={charset}"><p>{text}'
    encoding = "cp1252" if charset.startswith("no") else charset
    (tmp_path / "a.html").write_bytes(page.encode(encoding))
    ((document,), _) = read(tmp_path)
    assert (document.text, document.title) == (text, "a")


@pytest.mark.parametrize("name", ["a.xml", "a.docbook"])
def test_xml(name: str, tmp_path: Path) -> None:
    page = "<?xml version='1.0'?><article><title>T</title><para>Some text.</para></article>"
    (tmp_path / name).write_text(page)
    ((document,), _) = read(tmp_path)
    assert (document.title, document.text) == ("T", "Some text.")


def test_pages_that_are_no_good_html(tmp_path: Path) -> None:
    for name, page in {
        "1": "<nav>menu<p>The end of its navigation is missing",
        "2": "<p>unclosed <b>tags</p> and </i> strays < & &bogus; <",
        "3": "<script>only</script>",
        "4": '<input role="navigation"><p>after an element without an end',
        "5": "",
    }.items():
        (tmp_path / f"{name}.html").write_text(page)
    documents, skipped = read(tmp_path)
    assert [document.text for document in documents] == [
        "menu\n\nThe end of its navigation is missing",
        "unclosed tags\n\nand strays < & &bogus; <",
        "after an element without an end",
    ]
    assert skipped == {"empty": 2}


@pytest.mark.parametrize(
    "piece", ["<div>", "<a ", "<!--", "<![", "<?", "&", "</", '<a b="', "<p>a</p>\n \n"]
)
def test_hostile_pages_end(piece: str, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(piece * (120_000 // len(piece)) + "<p>x")
    (tmp_path / "b.txt").write_text("good")
    began = time.monotonic()
    documents, _ = read(tmp_path)
    assert documents[-1].text == "good"
    assert time.monotonic() - began < 10
