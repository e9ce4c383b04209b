"""Counts what faults leave: kills, lost servers, changes, floods, damage, malice, few descriptors.

    python -m tools.benchmark faults --kills=20

The databases that are broken are made here: of generated text with an embedder without
weights, or `--embedder=minilm`, and of random vectors for the service.
"""

import argparse
import importlib
import tempfile
from pathlib import Path

from tools.benchmark.result import Result, Row, describe_machine, positive

# Part -> the module that makes its rows; imported when asked for: some need TensorFlow.
_PARTS = {
    "kills": "kills",
    "service": "servers",
    "damage": "damage",
    "changes": "changes",
    "descriptors": "descriptors",
    "hostile": "hostile",
    "floods": "floods",
    "drills": "drills",
}


def _parts(text: str) -> list[str]:
    asked = text.split(",")
    unknown = [part for part in asked if part not in _PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no part {unknown[0]!r}; there are {', '.join(_PARTS)}"
        )
    return asked


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `faults`."""
    all_parts = ",".join(_PARTS)
    command.add_argument("--parts", type=_parts, default=all_parts, help=all_parts)
    command.add_argument("--kills", type=positive, default=20, help="of each kind")
    command.add_argument("--seed", type=int, default=0, help="of moments and bytes")
    command.add_argument(
        "--rows", type=positive, default=50_000, help="that are served"
    )
    command.add_argument("--queue", type=positive, default=16, help="of a shard server")
    command.add_argument("--clients", type=positive, default=4, help="at once")
    command.add_argument("--seconds", type=float, default=10.0, help="of each load")
    command.add_argument("--timeout_s", type=float, default=2.0, help="of a request")
    command.add_argument(
        "--embedder",
        choices=("toy", "minilm"),
        default="toy",
        help="where text is embedded",
    )
    command.add_argument(
        "--drills", default="", help="beginnings of names, with commas"
    )
    command.add_argument("--adds", type=positive, default=160, help="of one text each")


def run(args: argparse.Namespace) -> Result:
    """Gives the counts of all parts that are asked for."""
    rows: list[Row] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for part in args.parts:
            module = importlib.import_module(f"tools.faults.{_PARTS[part]}")
            made = module.rows(Path(scratch) / part, args, notes)
            rows += [{"part": part} | row for row in made]
    conditions = describe_machine(("grpcio", "numpy", "tensorflow")) | {
        "kills of each": args.kills,
        "seed": args.seed,
        "vectors served": args.rows,
        "clients": args.clients,
        "queue of a shard server": args.queue,
        "seconds of load": args.seconds,
        "embedder": args.embedder,
    }
    return Result(name="faults", conditions=conditions, rows=rows, notes=notes)
