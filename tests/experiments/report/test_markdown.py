"""Text of others can't end its own fence."""

import re

import hypothesis
from hypothesis import strategies

from experiments.report import markdown


@hypothesis.given(strategies.text("`a\n ", max_size=30))
def test_no_text_ends_its_own_fence(text):
    lines = markdown.block(text).splitlines()
    assert lines[0] == f"{lines[-1]}text"
    assert not any(line.strip().startswith(lines[-1]) for line in lines[1:-1])
    span = markdown.code(text)
    fence = re.match("`+", span).group()
    assert span.endswith(fence) and fence not in span[len(fence) : -len(fence)]


def test_what_markdown_takes_for_marks_is_escaped_once():
    assert markdown.escape("a_b *c*\n|d|") == r"a\_b \*c\* \|d\|"
    fenced = markdown.code("a_b")
    assert markdown.escape(fenced) == "`a_b`"
