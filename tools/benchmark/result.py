"""The result of a benchmark: a table and its conditions, and how runs are taken in turn."""

import argparse
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_pipeline.storage.files import write_file

ROOT = pathlib.Path(__file__).parents[2]  # of the repository

Row = dict[str, str | int | float]

_MAX_WIDTH = 120
UNKNOWN = "-"  # in a row, where a value is not known or does not apply


@dataclasses.dataclass(kw_only=True, slots=True)
class Result:
    """A table, the conditions under which it was measured, and notes."""

    name: str
    conditions: dict[str, str | int | float]
    rows: list[Row]
    notes: list[str]


def unmeasured(size: str, retrieval: str, problem: str) -> Row:
    """Gives the row of a step that could not be measured."""
    return {"size": size, "retrieval": retrieval, "state": problem}


def alternate(
    contestants: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Runs all contestants `rounds` times in turn; gives the seconds of each run.

    A first run of each, not counted, compiles and fills caches.
    """
    for run in contestants.values():
        run()
    elapsed_s: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start_s = time.perf_counter()
            run()
            elapsed_s[name].append(time.perf_counter() - start_s)
    return elapsed_s


def describe_machine(packages: Sequence[str]) -> dict[str, str | int | float]:
    """Gives the machine, its load, the date, the commit and versions of packages."""
    model = platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.partition(": ")[2] for line in lines if "model name" in line]
        model = names[0] if names else model
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False)
    found: dict[str, str | int | float] = {
        "machine": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "load when done": round(os.getloadavg()[0], 1),
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or UNKNOWN,
        "python": platform.python_version(),
    }
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    for name in packages:
        if name in installed:
            found[name] = importlib.metadata.version(name)
    return found


def command_line(module: str, flags: Sequence[str]) -> str:
    """Gives the command that measures a result again, without the file that it writes."""
    kept = [flag for flag in flags if not flag.startswith("--out=")]
    return shlex.join(["python", "-m", module, *kept])


def positive(text: str) -> int:
    """Reads a whole number of at least 1 from the command line."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, is {text}")
    return int(text)


def progress(line: str) -> None:
    """Tells whoever waits what is measured now, on standard error."""
    print(line, file=sys.stderr, flush=True)


def significant(value: float, digits: int = 4) -> float:
    """Rounds a number for a table to some digits, whatever its magnitude."""
    return float(f"{value:.{digits}g}")


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """Divides round by round; gives the median, and the least and the largest ratio."""
    ratios = np.divide(above, below)
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def print_result(result: Result) -> None:
    """Prints the table, then the conditions and notes. A row may lack columns.

    Rows that name their `part` make a table for each part. A table that is too wide for a
    screen is turned: a line for each column; where a cell is a sentence, a line for each cell.
    """
    for _, rows in itertools.groupby(result.rows, lambda row: row.get("part")):
        print("\n".join(_table(list(rows))))
    print(", ".join(f"{name}: {value}" for name, value in result.conditions.items()))
    for note in result.notes:
        print(note)


def _table(rows: Sequence[Row]) -> list[str]:
    header = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[str(row.get(name, UNKNOWN)) for name in header] for row in rows]
    table = _aligned([header, *lines])
    if len(table[0]) <= _MAX_WIDTH:
        return table
    turned = _aligned([list(line) for line in zip(header, *lines, strict=True)])
    if len(turned[0]) <= _MAX_WIDTH:
        return turned
    return [
        line
        for row in rows
        for line in ["", *(f"{name}: {value}" for name, value in row.items())]
    ]


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]


def write_result(result: Result, path: pathlib.Path) -> None:
    """Writes the result as JSON, whole or not at all."""
    text = json.dumps(dataclasses.asdict(result), indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text)


def read_result(path: pathlib.Path) -> Result:
    """Reads what `write_result` wrote."""
    return Result(**json.loads(path.read_text(encoding="utf-8")))
