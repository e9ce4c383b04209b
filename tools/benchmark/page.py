"""The pages of results: a template whose table lines are filled from result files.

    python -m tools.benchmark render

In `docs/results/page.md` each heading `## QUESTION` begins a page of `docs/benchmarks/`; what
stands before the first is the page that leads to them. A line `| @FILE NAME=VALUE ... |
cell | cell ... |` stands for every row of `docs/results/FILE.json` that has these values.
`{NAME}` in a cell is the row's value of that column. Where and how a file was measured
stands below the table, once.
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from tools.benchmark.result import ROOT, Result, read_result

RESULTS = ROOT / "docs" / "results"
PAGES = ROOT / "docs" / "benchmarks"
HEADER = "| what | ours | beside | ratio (range) |"
_OPENING = "index.md"


def render(results: Path = RESULTS) -> dict[str, str]:
    """Gives the pages, by the name of their file, that a template and result files make.

    Raises:
        ValueError: naming the line, if a file has no such row or column.
    """
    template = (results / "page.md").read_text(encoding="utf-8")
    opening, *questions = re.split(r"(?m)^## ", template)
    pages = {}
    for question in questions:
        title = question.partition("\n")[0]
        name = "-".join(re.findall(r"[a-z0-9]+", title.lower()))
        pages[f"{name}.md"] = _page(question, results)
    leads = "".join(
        f"- [{text.splitlines()[0].removeprefix('# ')}]({name})\n"
        for name, text in pages.items()
    )
    contents = "\n".join(["```{toctree}", ":hidden:", "", *pages, "```"])
    pages[_OPENING] = f"{opening.rstrip()}\n\n## The questions\n\n{leads}\n{contents}\n"
    return pages


def write(pages: Mapping[str, str], folder: Path = PAGES) -> None:
    """Writes the pages; those of questions that are gone go, too."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


def _page(question: str, results: Path) -> str:
    """A question's page: its text, its table, and where each of its files was measured."""
    lines = question.strip().splitlines()
    named = {_file(line): None for line in lines if line.startswith("| @")}
    files = {name: read_result(results / f"{name}.json") for name in named}
    several, text, table = len(files) > 1, [], []
    for line in lines:
        if line.startswith("| @"):
            number = 1 + list(files).index(_file(line))
            by = [str(number)] * several
            filled = _filled(line, files[_file(line)])
            table += [f"| {' | '.join([*cells, *by])} |" for cells in filled]
        else:
            text.append(line)
    header = HEADER + " run |" * several
    rule = re.sub(r"[^|]+", "---", header)
    body = "\n".join(text).rstrip()
    return "\n".join(
        [f"# {body}", "", header, rule, *table, "", *_runs(files.values())]
    )


def _runs(files: Iterable[Result]) -> list[str]:
    """Where, when and by which command each file was measured."""
    lines = []
    for file in files:
        told = file.conditions
        where = ", ".join(str(told[name]) for name in ("machine", "date", "commit"))
        lines.append(f"{where}: `{told['command']}`")
    if len(lines) == 1:
        return [f"Measured on {lines[0]}", ""]
    return [*(f"{number}. {line}" for number, line in enumerate(lines, start=1)), ""]


def _file(line: str) -> str:
    return line.removeprefix("| @").split()[0]


def _filled(line: str, result: Result) -> list[list[str]]:
    """The cells of each row that a line of the template stands for."""
    source, *cells = (cell.strip() for cell in line.strip()[1:-1].split("|"))
    name, *wanted = shlex.split(source.removeprefix("@"))
    values = dict(one.split("=", 1) for one in wanted)
    rows = [
        row
        for row in result.rows
        if all(str(row.get(column)) == value for column, value in values.items())
    ]
    if not rows:
        raise ValueError(f"{name}.json has no row for {line!r}")
    try:
        return [[cell.format_map(row) for cell in cells] for row in rows]
    except KeyError as error:
        raise ValueError(f"{name}.json has no column {error} for {line!r}") from error
