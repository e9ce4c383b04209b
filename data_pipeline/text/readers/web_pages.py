"""The reader of HTML and XML: a page without its tags, scripts and navigation."""

import codecs
import re
from collections.abc import Iterator
from html.parser import HTMLParser

from data_pipeline.text.documents import Document
from data_pipeline.text.readers import encodings
from data_pipeline.text.readers.compression import DamagedFileError
from data_pipeline.text.readers.source_file import SourceFile

_NO_TEXT = frozenset(
    {"script", "style", "template", "noscript", "svg", "iframe", "object", "select"}
)
_NAVIGATION = frozenset({"nav", "button"})
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta"}
    | {"param", "source", "track", "wbr"}
)
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "br", "caption", "dd", "details"}
    | {"div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1"}
    | {"h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "ol", "p", "pre"}
    | {"section", "summary", "table", "tr", "ul"}
)
_CHARSET = re.compile(
    rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w.:-]{1,40})", re.IGNORECASE
)
_CHARSET_WITHIN_BYTES = 4096
_SPACES = re.compile(r"[ \t\r\f\v\n]+")
_BLANK_LINES = re.compile(r"[ \t]*\n[ \t]*(?:\n[ \t]*)+")


def read_html(file: SourceFile) -> Iterator[Document]:
    """A page as its text, titled by its `<title>`."""
    page = _decoded(file.data())
    try:
        parsed = _Page(_NO_TEXT | _NAVIGATION)
        parsed.read(page)
        if (
            not parsed.text
        ):  # the end of its navigation is missing, or it is all there is
            parsed = _Page(_NO_TEXT)
            parsed.read(page)
    except AssertionError as error:  # of Python's parser, for odd declarations
        raise DamagedFileError(str(error)) from error
    yield from file.document(parsed.text, parsed.title)


def text_of(markup: str) -> str:
    """The text of a piece of HTML; AssertionError for some odd declarations."""
    parsed = _Page(_NO_TEXT)
    parsed.read(markup)
    return parsed.text


def _decoded(data: bytes) -> str:
    """Decodes UTF-8, else what the page says of itself, else what is evident."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        charset = _CHARSET.search(data[:_CHARSET_WITHIN_BYTES])
        try:
            return codecs.decode(data, charset[1].decode() if charset else "utf-8")
        except (LookupError, UnicodeDecodeError):
            return encodings.decode(data)


class _Page(HTMLParser):
    """Gathers the text of a page and leaves out some elements with all they hold."""

    def __init__(self, left_out: frozenset[str]):
        super().__init__()
        self.title = self.text = ""
        self._left_out = left_out
        self._pieces: list[str] = []
        self._title: list[str] = []
        self._within = ""  # the element that is left out, and how often it is open
        self._depth = self._in_title = self._in_pre = 0

    def read(self, page: str) -> None:
        """Sets `title` and `text`."""
        # `close` would try what an open tag or comment holds again from each of its letters,
        # which takes hours for some pages: what never ends is cut. The tag gets out the rest.
        self.feed(page + "<br>")
        self.title = _SPACES.sub(" ", "".join(self._title)).strip()
        self.text = _BLANK_LINES.sub("\n\n", "".join(self._pieces)).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser, as the next three."""
        if self._depth:
            self._depth += tag == self._within
        elif tag in self._left_out or (
            "nav" in self._left_out
            and tag not in _VOID
            and ("role", "navigation") in attrs
        ):
            self._within, self._depth = tag, 1
        elif tag == "title":
            self._in_title = 1
        elif tag in _BLOCKS:
            self._in_pre += tag == "pre"
            self._break(tag)
        elif tag in ("td", "th"):
            self._pieces.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Breaks the line at "<br/>"."""
        if tag in _BLOCKS and not self._depth:
            self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        """Goes on after what is left out."""
        if self._depth:
            self._depth -= tag == self._within
        elif tag == "title":
            self._in_title = 0
        elif tag in _BLOCKS:
            self._in_pre = max(0, self._in_pre - (tag == "pre"))
            self._break(tag)

    def handle_data(self, data: str) -> None:
        """Keeps text."""
        if self._depth:
            return
        if self._in_title:
            self._title.append(data)
            return
        if not self._in_pre:
            data = _SPACES.sub(" ", data)
            if not self._pieces or self._pieces[-1].endswith((" ", "\n")):
                data = data.lstrip(" ")
        if data:
            self._pieces.append(data)

    def _break(self, tag: str) -> None:
        self._pieces.append("\n" if tag in ("br", "li", "tr", "dd", "dt") else "\n\n")
