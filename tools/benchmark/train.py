"""Whole optimizer steps, with retrieval and without, and what share of the peak they use.

    python -m tools.benchmark train --sizes=tiny,172m

Each size is measured in a process of its own: so a size that does not fit ends that
process and no other, and its peak memory is its own.
"""

import argparse
import pathlib
import signal
import subprocess
import sys
import tempfile

from tools.benchmark.result import (
    ROOT,
    UNKNOWN,
    Result,
    describe_machine,
    positive,
    progress,
    read_result,
    unmeasured,
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `train`."""
    command.add_argument("--sizes", default="tiny", help="tiny, peer, 172m, 425m, ...")
    command.add_argument("--sequence_len", type=positive, help="tokens; the size's own")
    command.add_argument("--batch_size", type=positive, help="in all; the size's own")
    command.add_argument("--num_neighbours", type=positive, help="the size's own")
    command.add_argument(
        "--absent", action="store_true", help="also without neighbours"
    )
    command.add_argument("--steps", type=positive, default=5, help="of a round")
    command.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    command.add_argument("--model", default="", help="other settings: remat=none,...")
    command.add_argument("--mesh_model", type=int, default=1, help="devices on 'model'")
    command.add_argument("--in_process", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> Result:
    """Tokens a second, FLOP/s and memory of whole optimizer steps."""
    if args.in_process:
        from tools.benchmark import train_size

        return train_size.measure(args)
    found = [_in_own_process(args, size) for size in args.sizes.split(",")]
    measured = [result for result in found if result.conditions]
    conditions = dict(
        measured[-1].conditions if measured else describe_machine(("jax",))
    )
    notes = list(dict.fromkeys(note for result in found for note in result.notes))
    rows = [row for result in found for row in result.rows]
    return Result(name="train", conditions=conditions, rows=rows, notes=notes)


def _in_own_process(args: argparse.Namespace, size: str) -> Result:
    progress(f"measuring size {size}")
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "train.json"
        command = [sys.executable, "-m", "tools.benchmark", "train"]
        command += ["--in_process", f"--sizes={size}", f"--out={out}"]
        for name in ("sequence_len", "batch_size", "num_neighbours"):
            value = getattr(args, name)
            if value is not None:
                command.append(f"--{name}={value}")
        for name in ("steps", "rounds", "dtype", "model", "mesh_model"):
            command.append(f"--{name}={getattr(args, name)}")
        command += ["--absent"] * args.absent
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        if done.returncode == 0:
            return read_result(out)
    if done.returncode == -signal.SIGKILL:
        problem = "killed, as the system does when memory runs out"
    else:
        problem = f"failed with exit status {done.returncode}: see its message"
    return Result(
        name="train", conditions={}, rows=[unmeasured(size, UNKNOWN, problem)], notes=[]
    )
