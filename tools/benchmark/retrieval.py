"""The gain of retrieval in runs that were trained and evaluated, one row a condition.

python -m tools.benchmark retrieval --workdir work/tiny work/seed-1
"""

import argparse
from pathlib import Path

from data_pipeline.storage.files import read_json
from tools.benchmark.result import Result, Row, describe_machine


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `retrieval`."""
    command.add_argument("--workdir", type=Path, nargs="+", required=True)


def run(args: argparse.Namespace) -> Result:
    """Gives bits per byte of each run and condition, and the difference to off.

    Raises:
        ValueError: naming the folder, if a run was not evaluated.
    """
    rows: list[Row] = []
    for workdir in args.workdir:
        found = read_json(workdir / "evaluation" / "results.json")
        if found is None:
            raise ValueError(f"{workdir} has no evaluation: give a run's --workdir")
        settings = read_json(workdir / "settings.json") or {}
        off = found["conditions"]["off"]["bits_per_byte"]
        for name, one in found["conditions"].items():
            low, high = one["minus_off_interval"]
            row: Row = {"run": workdir.name, "retrieval": name}
            row["seed"] = settings.get("config", {}).get("train", {}).get("seed", "-")
            row["documents"] = found["documents"]
            row["bits per byte"], row["off"] = (
                round(value, 4) for value in (one["bits_per_byte"], off)
            )
            row["less off"] = f"{one['minus_off']:+.4f} ({low:+.4f} to {high:+.4f})"
            rows.append(row)
    conditions = describe_machine(("jax", "tensorflow-cpu"))
    notes = ["a range is a bootstrap's 95 % interval over documents"]
    return Result(name="retrieval", conditions=conditions, rows=rows, notes=notes)
