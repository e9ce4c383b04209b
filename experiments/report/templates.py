"""Templates of pages: where they stand, and how others' text comes into them.

All pages begin with `head.html`, which wants a `title` and the `width` of the text. It forbids a page
to load anything, and to run anything but the script whose `script_hash` it is told.
"""

import importlib.resources
from typing import TYPE_CHECKING

from experiments.report import markdown

if TYPE_CHECKING:
    import jinja2


def environment(package: str = __package__, *, is_html: bool) -> "jinja2.Environment":
    """What fills templates of a package, and of this one; others' text is escaped."""
    import jinja2  # here: who launches needs none

    def source(template: str) -> str | None:
        for place in (package, __package__):
            path = importlib.resources.files(place) / template
            if path.is_file():
                return path.read_text(encoding="utf-8")
        return None

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=is_html,
        finalize=None if is_html else markdown.escape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
