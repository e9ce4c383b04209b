"""Text files are read as text; what only looks like it is called by its name."""

import base64
import json
import random
from pathlib import Path

import pytest

from tests.corpus_files import read

PROSE = "Some words that a person wrote to be read by others. " * 40
PICTURE = base64.b64encode(bytes(range(256)) * 40).decode()


def left_out(folder: Path) -> str:
    with pytest.raises(ValueError, match="holds no usable text") as raised:
        read(folder)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("%PDF-1.4\n1 0 obj << >> stream\nBT (text) Tj ET\n", "PDF under another name"),
        ("{\\rtf1\\ansi some text}", "RTF"),
        ("<mediawiki xmlns='x'>\n<page><title>T</title>", "MediaWiki dump"),
        ("<?xml version='1.0'?>\n<mediawiki>", "MediaWiki dump"),
        ("<?xml version='1.0'?>\n<!-- by -->\n<svg><path d='M 1 2'/></svg>", "drawing"),
        ("From a@b.c Mon Jan  1 00:00:00 2024\nSubject: x\n\ntext", "mail box"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE", "key or certificate"),
        (PICTURE, "text for machines"),
        ("\n".join(PICTURE[n : n + 76] for n in range(0, 9000, 76)), "for machines"),
        ("function(a){return b(a)&&c[a]};" * 200, "text for machines"),
        ("ACGT" * 15 + "\n", "text for machines"),
        (" ".join(str(random.Random(n).random()) for n in range(500)), "for machines"),
    ],
)
def test_other_than_text(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text if len(text) > 61 else text * 40)
    assert reason in left_out(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        PROSE.replace("\n", " "),
        PROSE.replace(" ", "  \n"),
        "def f(x_1, y_2):\n    return x_1[0] + y_2[1] * 3\n" * 40,
        "| 1 | 2.50 | Berlin |\n|---|------|--------|\n" * 40,
        "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 40,
        "https://example.org/a/long/path/that/has/more/than/sixty/letters/in/it\n"
        + PROSE,
        PICTURE[:500] + "\n" + PROSE * 3,
        "12345",
        "{ not json, but a brace } " + PROSE,
        "[1] A reference. " + PROSE,
        "From here on " + PROSE,
    ],
)
def test_text_of_many_kinds(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert read(tmp_path)[0][0].text == text


def test_pictures_within_text_are_cut(tmp_path: Path) -> None:
    text = f"# Title\n\n![x](data:image/png;base64,{PICTURE})\n\n{PROSE}"
    (tmp_path / "a.md").write_text(text)
    ((document,), _) = read(tmp_path)
    assert document.text == f"# Title\n\n![x](data:)\n\n{PROSE}"
    assert document.title == "Title"


def test_notebooks(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# A study\n", "\n", "Of \ud800 things."]},
        {
            "cell_type": "code",
            "source": "print(1)",
            "outputs": [{"data": {"image/png": PICTURE}}, {"text": "1"}],
        },
        {"cell_type": "raw", "source": "raw"},
        {"cell_type": "markdown", "source": f"![](data:image/png;base64,{PICTURE})"},
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4}
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "b.ipynb").write_text('{"cells": [{}]}')
    (tmp_path / "c.ipynb").write_text("no json")
    (tmp_path / "d.ipynb").write_text('{"cells": []}')
    (tmp_path / "e.ipynb").write_text('{"cells": [{"cell_type": "code", "source": 5}]}')
    ((document,), skipped) = read(tmp_path)
    assert document.title == "A study"
    assert document.text == "# A study\n\nOf \ufffd things.\n\nprint(1)\n\n![](data:)"
    assert skipped == {"invalid notebook": 3, "empty": 1}
