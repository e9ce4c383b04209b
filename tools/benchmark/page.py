"""The page of results: a template whose table lines are filled from result files.

    python -m tools.benchmark render

In `docs/results/page.md` a line `| @FILE NAME=VALUE ... | cell | cell ... |` stands for
every row of `docs/results/FILE.json` that has these values. `{NAME}` in a cell is the
row's value of that column. Where and how it was measured is added.
"""

import shlex
from pathlib import Path

from tools.benchmark.result import ROOT, read_result

RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "BENCHMARKS.md"


def render(results: Path = RESULTS) -> str:
    """Gives the page that a folder's template and result files make.

    Raises:
        ValueError: naming the line, if a file has no such row or column.
    """
    lines: list[str] = []
    for line in (results / "page.md").read_text(encoding="utf-8").splitlines():
        lines += _filled(line, results) if line.startswith("| @") else [line]
    return "\n".join(lines) + "\n"


def _filled(line: str, results: Path) -> list[str]:
    source, *cells = (cell.strip() for cell in line.strip()[1:-1].split("|"))
    name, *wanted = shlex.split(source.removeprefix("@"))
    result = read_result(results / f"{name}.json")
    values = dict(one.split("=", 1) for one in wanted)
    rows = [
        row
        for row in result.rows
        if all(str(row.get(column)) == value for column, value in values.items())
    ]
    if not rows:
        raise ValueError(f"{name}.json has no row for {line!r}")
    made_at = ", ".join(
        str(result.conditions[n]) for n in ("machine", "date", "commit")
    )
    filled = []
    for row in rows:
        try:
            texts = [cell.format_map(row) for cell in cells]
        except KeyError as error:
            raise ValueError(
                f"{name}.json has no column {error} for {line!r}"
            ) from error
        command = f"`{result.conditions['command']}`"
        filled.append(f"| {' | '.join([*texts, made_at, command])} |")
    return filled
