"""Compiles the real training step for TPU slices that are not there, and says what it needs.

    python -m tools.aot --config=experiments/configs/retro.py:7.5b \
        --topology=v5p:4x4x4 --config.mesh.model=4 --config.train.accumulation=8

The TPU compiler runs on any Linux machine (`make install-aot`); nothing is run on a TPU.
Each topology, with retrieval and without, is compiled by a process of its own, one after
the other. `--out` gets the result as JSON. Without a mesh and an accumulation of your
own the paper's models get those of `experiments/configs/retro.py`.
"""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments import command_line
from experiments.config import Experiment
from experiments.configs import retro
from tools.aot import roofline, table
from tools.benchmark import result

# Apart from other packages: where JAX finds it, every program looks for a TPU first, and says
# in five lines that there is none.
COMPILER = Path(sys.prefix) / "aot"

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's settings.")
_TOPOLOGY = flags.DEFINE_list("topology", None, "Slices such as v5p:4x4x4, by commas.")
_RETRIEVAL = flags.DEFINE_enum(
    "retrieval", "both", ["both", "on", "off"], "With neighbours, without, or both."
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")
_LIMIT_S = 1800.0  # that a compilation may take
_EFFORT = flags.DEFINE_float(
    "effort",
    -1.0,
    "What the compiler may spend on a better schedule, -1 to 1. A TPU job's is 0; at -1 it is "
    "two to three times as fast, moves about the same and peaks at somewhat more memory.",
)
_ROW = flags.DEFINE_string("row", None, "Internal: compile here and write this file.")


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """The settings of one compilation.

    Attributes:
        config: file, or file:argument.
        overrides: flags such as '--config.mesh.model=4'.
        topology: a slice by name.
        retrieval: False for the decoder alone.
        effort: of the compiler, -1 to 1.
    """

    config: str
    overrides: tuple[str, ...]
    topology: str
    retrieval: bool
    effort: float = -1.0


def main(argv: list[str]) -> None:
    """Compiles all that was asked for; with `--row`, one of it in this process."""
    command_line.no_arguments(argv)
    topologies = _TOPOLOGY.value or []
    for name in topologies:
        roofline.parse_slice(name)
    check_compiler()
    cfg: Experiment = _CONFIG.value
    if _ROW.value:
        from tools.aot import compilation

        row = compilation.compile_row(
            cfg, topologies[0], retrieval=_RETRIEVAL.value == "on"
        )
        Path(_ROW.value).write_text(json.dumps(row), encoding="utf-8")
        return
    flag = flags.FLAGS["config"]
    conditions = ["on", "off"] if _RETRIEVAL.value == "both" else [_RETRIEVAL.value]
    todo = jobs(
        config_flags.get_config_filename(flag),
        config_flags.get_override_values(flag),
        topologies,
        [condition == "on" for condition in conditions],
        effort=_EFFORT.value,
    )
    result.print_result(_compile_all(todo, Path(_OUT.value) if _OUT.value else None))


def check_compiler() -> None:
    """Raises ImportError, with what to do, if the TPU compiler is not there."""
    if importlib.util.find_spec("libtpu") is None and not COMPILER.exists():
        raise ImportError(
            "libtpu, the TPU compiler, is not installed: make install-aot (or pip "
            f"install --target {COMPILER} -r requirements-aot.lock)"
        )


def jobs(
    config: str,
    given: Mapping[str, object],
    topologies: Sequence[str],
    conditions: Sequence[bool],
    *,
    effort: float,
) -> list[Job]:
    """Gives a job for each topology in each condition.

    Args:
        config: file, or file:argument.
        given: settings that the user overrides. If they say how to split the batch, none
            of that is decided here.
        topologies: slices by name.
        conditions: True with retrieval, False without.
    """
    own = tuple(f"--config.{name}={value}" for name, value in given.items())
    decides = {"mesh.data", "mesh.model", "train.accumulation", "train.batch_size"}
    found = []
    for topology in topologies:
        overrides = own
        if (
            Path(config.partition(":")[0]).stem == "retro"
            and not decides & given.keys()
        ):
            model, accumulation = _layout(config.partition(":")[2], topology)
            overrides += (
                f"--config.mesh.model={model}",
                f"--config.train.accumulation={accumulation}",
            )
        found += [
            Job(config, overrides, topology, retrieval, effort)
            for retrieval in conditions
        ]
    return found


def _layout(argument: str, topology: str) -> retro.Layout:
    """How the paper's model of an argument is shared out on a slice."""
    cfg = retro.get_config(*filter(None, [argument]))
    return retro.layout(argument, topology, cfg.train.batch_size)


def _compile_all(todo: Sequence[Job], out: Path | None) -> result.Result:
    """Compiles one after the other; writes what is done after each."""
    conditions = result.describe_machine(("jax",))
    conditions["command"] = result.command_line("tools.aot", sys.argv[1:])
    notes = ["nothing was run on a TPU: times are bounds at the chips' published peaks"]
    found = result.Result(name="aot", conditions=conditions, rows=[], notes=notes)
    compiled: list[dict] = []
    for number, job in enumerate(todo, start=1):
        began_s = time.perf_counter()
        compiled.append(run_job(job))
        took_s = time.perf_counter() - began_s
        result.progress(
            f"{number}/{len(todo)}  {job.topology}, retrieval "
            f"{'on' if job.retrieval else 'off'}: {compiled[-1]['status']} ({took_s:.0f} s)"
        )
        config: result.Row = {"config": job.config.partition(":")[2] or job.config}
        found.rows = [config | row for row in table.table_rows(compiled)]
        if out is not None:
            result.write_result(found, out)
    return found


def run_job(job: Job) -> dict:
    """Compiles in a process; gives its row, or one that says why it failed."""
    paths = [str(COMPILER), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_PLATFORMS": "cpu",
        "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": str(job.effort),
        "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server what machine this is
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # takes no lock of the whole machine
        "MALLOC_ARENA_MAX": "1",  # with more, glibc holds a seventh more at the peak
    }
    row = {"topology": job.topology, "retrieval": job.retrieval}
    with tempfile.TemporaryDirectory() as folder:
        row_file = Path(folder) / "row.json"
        command = [
            *(sys.executable, "-m", "tools.aot"),
            f"--config={job.config}",
            *job.overrides,
            f"--topology={job.topology}",
            f"--retrieval={'on' if job.retrieval else 'off'}",
            f"--row={row_file}",
        ]
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return row | {"status": f"failed: took longer than {_LIMIT_S:.0f} s"}
        if done.returncode == 0:
            return json.loads(row_file.read_text(encoding="utf-8"))
        return row | {"status": f"failed: {_why(done.returncode, done.stderr)}"}


def _why(status: int, stderr: str) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        hint = ", probably for want of memory" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}"
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"exit status {status}"


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    command_line.start(main)
