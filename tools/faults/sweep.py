"""A real sweep on this machine: one unit is killed, one is preempted, and all end whole.

    python -m tools.benchmark sweep

Units are tiny models of a few steps on generated text. The first process finds no compiled program, all others
find those of the first, so its time to the first step beside theirs is what the cache of
compiled programs saves. A unit's overhead is the time from the launcher's "starts" to its
"finished" that none of the unit's own processes counts.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline.storage.files import read_json
from experiments.launching import work_units
from retro_jax.runs import checkpoints, goodput
from retro_jax.runs.metrics import read_metrics
from tools.benchmark.result import Result, Row, describe_machine, positive, progress
from tools.faults import small_database, toy_embedder

_DATA: dict = {"chunk_len": 64, "neighbour_len": 128, "shard_size_bytes": 1_000_000}
_CONFIG = """\
import pathlib

from experiments.configs import tiny
from tools.faults import small_database, toy_embedder


def get_config(arg=""):
    cfg = tiny.get_config()
    cfg.data = small_database.config(pathlib.Path({corpus!r}), **{data})
    cfg.train.steps, cfg.train.log_every, cfg.train.checkpoint_every = {steps}, 1, {every}
    cfg.evaluation.max_sequences, cfg.evaluation.num_samples = 2, 0
    cfg.evaluation.num_facts = 0
    return cfg


def sweep(add):
    for seed in range({units}):
        add(**{{"train.seed": seed}})
"""
_KILLED, _PREEMPTED = "unit-001", "unit-002"
_DONE_TO = {
    _KILLED: (signal.SIGKILL, "killed (SIGKILL)"),
    _PREEMPTED: (signal.SIGTERM, "preempted (SIGTERM)"),
}
_POLL_S = 0.05
_DOCUMENTS = 200


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `sweep`."""
    add = command.add_argument
    add("--units", type=positive, default=6, help="of the sweep")
    add("--steps", type=positive, default=12, help="of each unit")
    add("--keep", type=Path, help="folder that keeps the sweep and its dashboard")


def run(args: argparse.Namespace) -> Result:
    """Launches the sweep, breaks two of its units and tells how all have ended.

    Raises:
        ValueError: if the sweep can't be launched at all.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        every = max(1, args.steps // 4)
        out, config = folder / "sweep", folder / "swept.py"
        corpus = small_database.write_corpus(folder / "text", 0, _DOCUMENTS)
        with toy_embedder.in_place_of_all():
            small_database.make(corpus, folder / "database", **_DATA)
        config.write_text(
            _CONFIG.format(
                corpus=str(corpus),
                data=_DATA,
                steps=args.steps,
                units=args.units,
                every=every,
            )
        )
        command = [sys.executable, "-m", "experiments.launch", f"--config={config}"]
        command += ["--sweep", f"--out={out}", f"--database={folder / 'database'}"]
        began_s = time.monotonic()
        said, status = _launched(command, out, Path(scratch), every)
        took_s = time.monotonic() - began_s
        if status:
            raise ValueError(f"the sweep ended with {status}: {said[-1][1]}")
        shown = [sys.executable, "-m", "experiments.launch", "dashboard", str(out)]
        subprocess.run(shown, check=True, stdout=subprocess.DEVNULL)
        rows = [_row(unit, said) for unit in work_units.read(out)]
    conditions = describe_machine(("jax",)) | {
        "steps of a unit": args.steps,
        "the whole sweep took (s)": round(took_s, 1),
    }
    return Result(name="sweep", conditions=conditions, rows=rows, notes=[])


def _launched(
    command: Sequence[str], out: Path, scratch: Path, saved_every: int
) -> tuple[list[tuple[float, str]], int]:
    """Runs the launcher to its end; gives what it has said, and when, and its status."""
    environment = os.environ | {"XDG_CACHE_HOME": str(scratch / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    said, unbroken = [], dict(_DONE_TO)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        os.set_blocking(launcher.stdout.fileno(), False)
        while True:
            status = launcher.poll()
            while line := launcher.stdout.readline():
                said.append((time.monotonic(), line.strip()))
                progress(line.strip())
            if status is not None:
                return said, status
            for name in list(unbroken):
                if _break(out / name, unbroken[name][0], saved_every):
                    del unbroken[name]
            time.sleep(_POLL_S)


def _break(folder: Path, number: int, saved_every: int) -> bool:
    """Sends a signal to the trainer of a unit once it has saved something."""
    metrics = read_metrics(folder / "metrics" / "metrics.jsonl")
    if not metrics or metrics[-1]["step"] <= saved_every:
        return False
    with contextlib.closing(
        checkpoints.Checkpoints(folder / "checkpoints", keep=None)
    ) as kept:
        if kept.latest_step() is None:
            return False
    host = (read_json(folder / "status.json") or {})["pid"]
    children = Path(f"/proc/{host}/task/{host}/children").read_text().split()
    for child in children:
        os.kill(int(child), number)
    return bool(children)


def _row(unit: work_units.Unit, said: Sequence[tuple[float, str]]) -> Row:
    trained, evaluated = goodput.attempts(unit.folder)
    spent = goodput.summary(unit.folder) or {}
    first = [
        f"{one['to_first_step_s']:.1f}" for one in trained if one["to_first_step_s"]
    ]
    compiled = [f"{one['seconds']['compile']:.1f}" for one in trained]
    row: Row = {
        "unit": unit.name,
        "was": _DONE_TO.get(unit.name, (0, "left alone"))[1],
        "state": str(unit.status().get("state")),
        "processes that trained": len(trained),
        "steps": trained[-1]["step"] if trained else 0,
        "to the first step (s)": ", ".join(first),
        "of it compiling (s)": ", ".join(compiled),
        "useful": f"{spent['useful_share']:.0%}" if spent else "-",
    }
    if unit.name not in _DONE_TO:
        own_s = sum(one["now_s"] - one["began_s"] for one in [*trained, *evaluated])
        row["overhead (s)"] = round(_wall_s(unit.name, said) - own_s, 2)
    return row


def _wall_s(name: str, said: Sequence[tuple[float, str]]) -> float:
    """From the launcher's line that a unit starts to the one that it has finished."""
    moments: Mapping[str, float] = {
        line.partition(" (")[0]: moment for moment, line in said
    }
    return moments[f"{name}: finished"] - moments[f"{name}: starts"]
