"""BENCHMARKS.md is what its command makes of the committed results."""

import json

import pytest

from tools.benchmark import page

_HEADER = "| what | ours | beside | ratio (range) | machine, date, commit | command |"


def test_the_page_is_what_the_command_makes():
    assert page.PAGE.read_text(encoding="utf-8") == page.render(), (
        "run python -m tools.benchmark render"
    )


def test_each_question_has_one_table_and_two_sentences():
    opening, *questions = page.PAGE.read_text(encoding="utf-8").split("\n## ")
    assert len(questions) == 13 and "|" not in opening
    for question in questions:
        title, text, table = question.strip().split("\n\n")
        lines = table.splitlines()
        assert lines[0] == _HEADER and len(lines) > 2, title
        assert {line.count("|") for line in lines} == {7}, title
        assert 1 <= text.replace("\n", " ").count(". ") + 1 <= 2, title


def test_every_result_is_on_the_page():
    template = (page.RESULTS / "page.md").read_text(encoding="utf-8")
    for path in page.RESULTS.glob("*.json"):
        assert f"| @{path.stem} " in template, path.name


def _folder(tmp_path, line):
    where = {"machine": "B", "date": "2026-01-02", "commit": "abc", "command": "run it"}
    rows = [{"a": 1, "b c": "x"}, {"a": 1000, "b c": "y"}, {"a": 3, "b c": "x"}]
    result = {"name": "one", "conditions": where, "rows": rows, "notes": []}
    (tmp_path / "one.json").write_text(json.dumps(result))
    (tmp_path / "page.md").write_text(f"# Title\n{line}\n")
    return tmp_path


def test_a_line_stands_for_the_rows_it_asks_for(tmp_path):
    folder = _folder(tmp_path, "| @one 'b c=x' | {b c} | {a:,} | | |")
    assert page.render(folder) == (
        "# Title\n"
        "| x | 1 |  |  | B, 2026-01-02, abc | `run it` |\n"
        "| x | 3 |  |  | B, 2026-01-02, abc | `run it` |\n"
    )


def test_rows_and_columns_that_there_are_not_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"one\.json has no row for '\| @one a=7"):
        page.render(_folder(tmp_path, "| @one a=7 | {a} | | | |"))
    with pytest.raises(ValueError, match=r"one\.json has no column 'd' for"):
        page.render(_folder(tmp_path, "| @one a=3 | {d} | | | |"))
