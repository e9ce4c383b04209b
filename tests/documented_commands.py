"""The shell commands of the pages: what stands in their fenced `sh` blocks."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from tests.commands import ROOT

_BLOCK = re.compile(r"(?ms)^```sh\n(.*?)^```$")
_IN_ORDER = ("README", "docs/install", "docs/quickstart", "docs/documents")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a page, in one line."""

    page: str
    text: str


def pages() -> list[Path]:
    """The pages that people read, those first that others go on from."""
    first = [ROOT / f"{name}.md" for name in _IN_ORDER]
    others = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [*first, *(path for path in others if path not in first)]


def commands_of(text: str) -> Iterator[str]:
    """The commands of a page's text, in order; what goes on in a next line is joined."""
    for block in _BLOCK.findall(text):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            line = re.sub(r"\s+#.*", "", line).strip()
            if line:
                yield line


def commands() -> list[Command]:
    """All of them; one that several pages have stands where it comes first."""
    found: dict[str, Command] = {}
    for path in pages():
        name = path.relative_to(ROOT).as_posix()
        for text in commands_of(path.read_text(encoding="utf-8")):
            found.setdefault(text, Command(name, text))
    return list(found.values())
