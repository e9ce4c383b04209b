"""A built page asks no other host for anything: a build that makes one that does fails."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# What a browser fetches by itself; a link in the text is followed by a reader alone.
_FETCHED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "link": ("href",),
}
_NOT_FETCHED = {"canonical", "next", "prev", "index", "search", "author", "license"}
_OTHER_HOST = re.compile(r"\s*(https?:|wss?:)?//", re.IGNORECASE)
_IN_STYLES = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s;]+)""")


class _Requests(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.found += _IN_STYLES.findall(values.get("style", ""))
        if tag == "link" and set(values.get("rel", "").split()) & _NOT_FETCHED:
            return
        addresses = (values.get(name, "") for name in _FETCHED.get(tag, ()))
        self.found += [one for one in addresses if _OTHER_HOST.match(one)]


def requests(text: str, suffix: str) -> list[str]:
    """Gives the addresses of other hosts that a browser fetches for a page or a style sheet."""
    if suffix == ".css":
        return _IN_STYLES.findall(text)
    page = _Requests()
    page.feed(text)
    in_styles = re.findall(r"(?s)<style[^>]*>(.*?)</style>", text)
    return page.found + [one for style in in_styles for one in requests(style, ".css")]


def _of_folder(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".css"):
            for address in requests(path.read_text(encoding="utf-8"), path.suffix):
                yield f"{path.relative_to(folder)}: {address}"


def _check(app: Sphinx, error: Exception | None) -> None:
    is_site = error is None and app.builder.format == "html"
    if is_site and (found := list(_of_folder(Path(app.outdir)))):
        raise ExtensionError("pages ask other hosts: " + "; ".join(found))


def setup(app: Sphinx) -> dict[str, bool]:
    """Has Sphinx check the site when it is built."""
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
