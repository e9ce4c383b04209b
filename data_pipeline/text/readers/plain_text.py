"""Readers of text as it is typed: prose, markup, sources, WikiText, notebooks' cells.

What only looks like text is told by name: records are given to their own reader, and text
that was made for machines is left out.
"""

import json
import re
from collections.abc import Iterator

from data_pipeline.text.documents import Document
from data_pipeline.text.readers import encodings
from data_pipeline.text.readers.records import begins_json_lines, read_json
from data_pipeline.text.readers.source_file import SourceFile
from data_pipeline.text.readers.web_pages import read_html

# " = Title = " between blank lines; " = = Section = = " is no title.
_WIKITEXT_TITLE = re.compile(
    r"(?:^[ \t]*\n|\A)^ = (?!=)([^\n]*[^=\n]) = $(?=\n\s*?\n)", re.MULTILINE
)
_MARKDOWN_TITLE = re.compile(r"#{1,6}[ \t]+(.+?)[ \t#]*$")
_RST_TITLE = re.compile(r"(\S[^\n]*)\n([=\-~*#^\"])\2{2,}[ \t]*(?:\n|$)")
_PICTURE = re.compile(r"data:[\w/+.-]{1,80};base64,[A-Za-z0-9+/=]+")
_HTML = re.compile(r"<!doctype html\b|<html\b|<\?xml\b", re.IGNORECASE)
_SAMPLE_CHARS = 2_000
_LEAST_CHARS = 1_000  # of less nothing can be told
# Of what is no white space; prose has .95, code .8, tables of numbers below .1.
_MIN_LETTER_SHARE = 0.1
# Prose has .15, lists of links .06; base 64, minified code and hashes less than this. Scripts
# that part words otherwise are not ASCII.
_MIN_SPACE_SHARE = 0.04
_MIN_ASCII_SHARE = 0.9


def read_text(file: SourceFile) -> Iterator[Document]:
    """The whole file as one document, or the articles of WikiText."""
    text = without_pictures(encodings.decode(file.data()))
    beginning = text[:_SAMPLE_CHARS].lstrip()
    if beginning[:1] in ("{", "[") and _is_json(text):
        yield from read_json(file)
    elif _HTML.match(beginning):
        yield from read_html(file)
    elif _is_for_machines(text):
        file.skipped.add("text for machines (base64, minified, numbers)", file.name)
    elif articles := _wikitext_articles(text):
        for number, (title, article) in enumerate(articles, 1):
            yield Document(f"{file.name}:{number}", article, title, file.uri)
    else:
        yield from file.document(
            text, "" if file.path.suffix == ".py" else heading(text)
        )


def _is_json(text: str) -> bool:
    if begins_json_lines(text[: text.find("\n") + 1]):
        return True
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_for_machines(text: str) -> bool:
    """Judges by its beginning and its middle, and only if that is clear."""
    middle = max(_SAMPLE_CHARS, len(text) // 2)
    sample = text[:_SAMPLE_CHARS] + text[middle : middle + _SAMPLE_CHARS]
    visible = "".join(sample.split())
    if len(visible) < _LEAST_CHARS:
        return False
    if len(sample) - len(visible) < _MIN_SPACE_SHARE * len(sample):
        return len(sample.encode("ascii", "ignore")) > _MIN_ASCII_SHARE * len(sample)
    return sum(map(str.isalpha, visible)) < _MIN_LETTER_SHARE * len(visible)


def _wikitext_articles(text: str) -> list[tuple[str, str]]:
    """Titles and texts, if the file begins as WikiText does; else nothing."""
    if not text[:_SAMPLE_CHARS].lstrip().startswith("= "):
        return []
    titles = list(_WIKITEXT_TITLE.finditer(text))
    if not titles or text[: titles[0].start()].strip():
        return []
    starts = [0, *(match.start() for match in titles[1:]), len(text)]
    return [
        (match[1], text[starts[i] : starts[i + 1]]) for i, match in enumerate(titles)
    ]


def heading(text: str) -> str:
    """The heading of Markdown or reStructuredText that a text begins with, or ""."""
    beginning = text[:2000].lstrip()
    for pattern in (_MARKDOWN_TITLE, _RST_TITLE):
        if match := pattern.match(beginning.split("\n\n")[0] + "\n"):
            return match[1].strip()
    return ""


def read_notebook(file: SourceFile) -> Iterator[Document]:
    """A Jupyter notebook as the text of its cells, without what they gave out."""
    try:
        notebook = json.loads(encodings.decode(file.data()))
        cells = [
            "".join(cell["source"])
            for cell in notebook["cells"]
            if cell["cell_type"] in ("markdown", "code")
        ]
    except (ValueError, RecursionError, LookupError, TypeError):
        file.skipped.add("invalid notebook", file.name)
        return
    text = encodings.without_surrogates(without_pictures("\n\n".join(cells)))
    yield from file.document(text, heading(text))


def without_pictures(text: str) -> str:
    """Cuts the contents of pictures that stand in the text itself, in base 64."""
    return _PICTURE.sub("data:", text) if ";base64," in text else text
