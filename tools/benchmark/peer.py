"""Whole optimizer steps beside those of lucidrains' RETRO-pytorch, at one shape, on CPUs.

    python -m tools.benchmark peer --peer_python=PATH

Every contestant is a process of its own (`peer_step.py`) on the same
cores; they take turns, step by step, so that a busy machine slows all of them alike.
"""

import argparse
import dataclasses
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.benchmark import memory
from tools.benchmark.contestant import Contestant
from tools.benchmark.result import (
    Result,
    Row,
    describe_machine,
    positive,
    progress,
    ratio,
    significant,
)

_THEIRS, _OURS = "RETRO-pytorch 0.3.9", "retro-jax"
_HOW = (
    "make its environment with: python3.11 -m venv DIR && DIR/bin/pip install "
    "torch==2.13.0 retro-pytorch==0.3.9 'numpy<2' 'pyarrow<20'"
)
_SEQUENCE_LEN = 512  # of `peer_step.py` and of `sizes.LOADS`
_ROOM_BYTES = 4_000_000_000  # that a contestant may take


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """A model that takes part and its mode: a dtype for the peer, settings for ours."""

    who: str
    mode: str

    @property
    def dtype(self) -> str:
        return "bfloat16" if "bfloat16" in self.mode else "float32"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `peer`."""
    command.add_argument("--peer_python", type=Path, help="Python that has the peer")
    ours = ["dtype=float32,remat=none", "dtype=bfloat16,remat=none"]
    command.add_argument("--ours", nargs="+", default=ours, help="a contestant each")
    command.add_argument("--batch_size", type=positive, default=2, help="sequences")
    command.add_argument("--cores", type=int, default=2, help="for each contestant")
    command.add_argument("--steps", type=positive, default=1, help="of a turn")


def run(args: argparse.Namespace) -> Result:
    """Gives tokens a second and memory of both models' whole steps, retrieval on and off.

    Raises:
        ValueError: if the peer's environment or the memory to run in is not there.
    """
    version = _peer_version(args.peer_python)
    entries = [_Entry(_THEIRS, "float32"), _Entry(_THEIRS, "bfloat16")]
    entries += [_Entry(_OURS, mode) for mode in args.ours]
    rows: list[Row] = []
    beside: list[Row] = []
    for retrieval in ("on", "off"):
        found = _match(args, entries, retrieval, args.rounds)
        for entry, contestant in found.items():
            rows.append(_row(args, entry, retrieval, contestant))
        beside += _comparisons(args, found, retrieval)
    conditions = describe_machine(("jax", "numpy")) | {
        "peer": version,
        "shape": "12 layers of 512, encoder 2 of 512, 2 neighbours of 128",
        "batch": f"{args.batch_size} x {_SEQUENCE_LEN} random tokens",
        "cores of each": args.cores,
        "rounds": args.rounds,
        "steps of a round": args.steps,
        "off": "the peer without neighbours; ours without encoder and cross-attention",
    }
    rows += beside
    return Result(name="peer", conditions=conditions, rows=rows, notes=[])


def _peer_version(python: Path | None) -> str:
    if python is None or not python.exists():
        raise ValueError(f"--peer_python is {python}, which is not there: {_HOW}")
    asked = "import retro_pytorch, torch; print(torch.__version__)"
    done = subprocess.run(
        [python, "-c", asked], capture_output=True, text=True, check=False
    )
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"{python} can't import the peer ({problem}): {_HOW}")
    return f"{_THEIRS} with torch {done.stdout.split()[-1]}"


def _match(
    args: argparse.Namespace, entries: Sequence[_Entry], retrieval: str, rounds: int
) -> dict[_Entry, Contestant]:
    """Lets all contestants take turns; ends their processes."""
    free_bytes = memory.free_bytes()
    if free_bytes < _ROOM_BYTES * len(entries):
        raise ValueError(
            f"{len(entries)} contestants may take {_ROOM_BYTES * len(entries) / 1e9:.0f} "
            f"GB and {free_bytes / 1e9:.0f} GB are free: end other programs, or give "
            "fewer --ours"
        )
    found: dict[_Entry, Contestant] = {}
    try:
        for entry in entries:
            name = f"{entry.who} {entry.mode}, retrieval {retrieval}"
            progress(f"starting {name}")
            found[entry] = Contestant(name, _command(args, entry, retrieval))
            found[entry].ready()  # one after the other: compiling takes all cores
        for number in range(1, rounds + 1):
            for contestant in found.values():
                contestant.turn(args.steps)
                progress(f"{number}: {contestant.name}: {contestant.step_s[-1]:.3g} s")
    finally:
        for contestant in found.values():
            contestant.end()
    return found


def _command(args: argparse.Namespace, entry: _Entry, retrieval: str) -> list[str]:
    theirs = entry.who == _THEIRS
    python = args.peer_python if theirs else sys.executable
    model = "torch" if theirs else "jax"
    flags = [f"--mode={entry.mode}", f"--retrieval={retrieval}"]
    flags += [f"--batch_size={args.batch_size}", f"--cores={args.cores}"]
    return [str(python), "-m", "tools.benchmark.peer_step", model, *flags]


def _tokens_per_s(args: argparse.Namespace, contestant: Contestant) -> float:
    step_s = statistics.median(contestant.step_s)
    return significant(args.batch_size * _SEQUENCE_LEN / step_s)


def _row(
    args: argparse.Namespace, entry: _Entry, retrieval: str, contestant: Contestant
) -> Row:
    return {
        "part": "steps",
        "who": entry.who,
        "mode": entry.mode,
        "retrieval": retrieval,
        "parameters M": significant(contestant.about["parameters"] / 1e6),
        "tokens/s": _tokens_per_s(args, contestant),
        "step s": significant(statistics.median(contestant.step_s)),
        "peak MB": round(contestant.peak_bytes / 1e6),
        "compile s": significant(contestant.about.get("compile_s", 0.0), 3),
    }


def _comparisons(
    args: argparse.Namespace, found: dict[_Entry, Contestant], retrieval: str
) -> list[Row]:
    """Compares ours with theirs of the same dtype, and the fastest with the fastest."""
    theirs = [entry for entry in found if entry.who == _THEIRS]
    ours = [entry for entry in found if entry.who == _OURS]
    pairs = {(o, t): "no" for o in ours for t in theirs if o.dtype == t.dtype}
    by_step = {e: statistics.median(found[e].step_s) for e in found}
    fastest = min(ours, key=by_step.__getitem__), min(theirs, key=by_step.__getitem__)
    pairs[fastest] = "yes"
    return [
        {
            "part": "beside",
            "retrieval": retrieval,
            "ours": own.mode,
            "beside": other.mode,
            "fastest of each": is_fastest,
            "ours tokens/s": _tokens_per_s(args, found[own]),
            "beside tokens/s": _tokens_per_s(args, found[other]),
            "tokens/s ratio": ratio(found[other].step_s, found[own].step_s),
            "peak memory ratio": round(
                found[own].peak_bytes / found[other].peak_bytes, 2
            ),
        }
        for (own, other), is_fastest in pairs.items()
    ]
