"""The pages of results are what their command makes of the committed results."""

import json

import pytest

from tools.benchmark import page

_LINES = [
    "# Title",
    "Words.",
    "",
    "## Is it fast?",
    "",
    "One sentence.",
    "",
    "| @one 'b c=x' | {b c} | {a:,} | | |",
]


def test_the_pages_are_what_the_command_makes():
    there = {path.name: path.read_text() for path in page.PAGES.glob("*.md")}
    assert there == page.render(), "run python -m tools.benchmark render"


def test_each_question_has_a_page_with_one_table_and_two_sentences():
    pages = page.render()
    index = pages.pop("index.md")
    assert len(pages) == 18
    for name, question in pages.items():
        title, text, table, runs = question.strip().split("\n\n")
        assert title.startswith("# ") and f"[{title[2:]}]({name})" in index
        lines = table.splitlines()
        assert lines[0].startswith(page.HEADER) and len(lines) > 2, title
        assert len({line.count("|") for line in lines}) == 1, title
        assert 1 <= text.replace("\n", " ").count(". ") + 1 <= 2, title
        assert all("`" in run for run in runs.splitlines())


def test_every_result_is_on_a_page():
    template = (page.RESULTS / "page.md").read_text(encoding="utf-8")
    for path in page.RESULTS.glob("*.json"):
        assert f"| @{path.stem} " in template, path.name


def _folder(tmp_path, *lines):
    rows = [{"a": 1, "b c": "x"}, {"a": 1000, "b c": "y"}, {"a": 3, "b c": "x"}]
    for name in ("one", "two"):
        made = {"machine": "B", "date": "2026-01-02", "commit": "abc"}
        made["command"] = f"run {name}"
        result = {"name": name, "conditions": made, "rows": rows, "notes": []}
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    (tmp_path / "page.md").write_text("\n".join([*_LINES[:-1], *lines]))
    return tmp_path


def test_a_line_stands_for_the_rows_it_asks_for(tmp_path):
    pages = page.render(_folder(tmp_path, _LINES[-1]))
    assert list(pages) == ["is-it-fast.md", "index.md"]
    assert pages["is-it-fast.md"] == (
        "# Is it fast?\n\nOne sentence.\n\n"
        "| what | ours | beside | ratio (range) |\n|---|---|---|---|\n"
        "| x | 1 |  |  |\n| x | 3 |  |  |\n\n"
        "Measured on B, 2026-01-02, abc: `run one`\n"
    )
    assert "# Title\nWords.\n" in pages["index.md"]


def test_where_files_were_measured_several_times_each_row_names_its_run(tmp_path):
    lines = [f"| @{name} a=3 | {{a}} | | | |" for name in ("two", "one")]
    text = page.render(_folder(tmp_path, *lines))["is-it-fast.md"]
    assert text.endswith(
        "| 3 |  |  |  | 1 |\n| 3 |  |  |  | 2 |\n\n"
        "1. B, 2026-01-02, abc: `run two`\n2. B, 2026-01-02, abc: `run one`\n"
    )


def test_rows_and_columns_that_there_are_not_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"one\.json has no row for '\| @one a=7"):
        page.render(_folder(tmp_path, "| @one a=7 | {a} | | | |"))
    with pytest.raises(ValueError, match=r"one\.json has no column 'd' for"):
        page.render(_folder(tmp_path, "| @one a=3 | {d} | | | |"))


def test_a_page_whose_question_is_gone_goes(tmp_path):
    page.write({"old.md": "1", "index.md": "2"}, tmp_path / "pages")
    page.write({"index.md": "3"}, tmp_path / "pages")
    assert [path.read_text() for path in (tmp_path / "pages").iterdir()] == ["3"]
