"""What a benchmark gives: a table, its conditions, and how runs are taken in turn."""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from data_pipeline.storage.files import write_file

Row = dict[str, str | int | float]

_MAX_WIDTH = 120
UNKNOWN = "-"  # in a row, where a value is not known or does not apply


@dataclasses.dataclass(kw_only=True, slots=True)
class Result:
    """A table, the conditions it holds under, and sentences drawn from it."""

    name: str
    conditions: dict[str, str | int | float]
    rows: list[Row]
    notes: list[str]


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
    """Cores, load and versions: what a rate means nothing without."""
    found: dict[str, str | int | float] = {
        "processor": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "load when done": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    for name in packages:
        if name in installed:
            found[name] = importlib.metadata.version(name)
    return found


def positive(text: str) -> int:
    """A number of times on the command line: at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, is {text}")
    return int(text)


def progress(line: str) -> None:
    """Tells who waits what is being measured; not on standard output, nor in a result."""
    print(line, file=sys.stderr, flush=True)


def significant(value: float, digits: int = 4) -> float:
    """Rounded for a table, whatever the magnitude."""
    return float(f"{value:.{digits}g}")


def print_result(result: Result) -> None:
    """Prints the table, then the conditions and notes. A row may lack columns.

    Rows that name their `part` make a table for each part. A table that is too wide for a
    screen is turned: a line for each column.
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
    return _aligned([list(line) for line in zip(header, *lines, strict=True)])


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]


def write_result(result: Result, path: pathlib.Path) -> None:
    """Writes the result as JSON, whole or not at all."""
    write_file(path, json.dumps(dataclasses.asdict(result), indent=2) + "\n")


def read_result(path: pathlib.Path) -> Result:
    """Reads what `write_result` wrote."""
    return Result(**json.loads(path.read_text(encoding="utf-8")))
