"""Others' text in Markdown: escaped within a line, or verbatim in code behind a fence."""

import re


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""


def escape(value: object) -> str:
    """A value within a line: what Markdown or HTML would take for a mark is escaped."""
    if isinstance(value, Markdown):
        return value
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(str(value).split()))


def code(text: str) -> Markdown:
    """A code span; its fence is longer than any run of backticks in the text."""
    line = " ".join(text.split())
    fence = "`" * (_longest_run(line) + 1)
    # Else a backtick at an end would be part of the fence; an empty span is none at all.
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return Markdown(f"{fence}{pad}{line}{pad}{fence}")


def block(text: str, language: str = "text") -> Markdown:
    """A code block; its fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return Markdown(f"{fence}{language}\n{text.rstrip()}\n{fence}\n")


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
