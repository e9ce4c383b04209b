"""Launches work units through XManager, on this machine: the words of `retro launch`.

    xmanager launch experiments/launch_xm.py -- --config=tiny --sweep --out=DIR

XManager wants an environment of its own (`pip install xmanager`, with pip 25 or uv), so
nothing of this project is imported here: RETRO_PYTHON names the Python that has it, which
plans the units and runs them. XManager ends them when this command ends.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from xmanager import xm, xm_local

_ROOT = Path(__file__).resolve().parents[1]
_PYTHON = str(_ROOT / ".venv" / "bin" / "python")  # where `make install` puts it


def main(_: Sequence[str]) -> None:
    """Plans the units, then starts one XManager job for each that is not finished."""
    python = os.environ.get("RETRO_PYTHON", _PYTHON)
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    planned = subprocess.run(
        [python, "-m", "experiments.launch", *_WORDS, "--executor=print"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if planned.returncode:
        sys.exit(planned.returncode)
    # The last words of each line that starts a host are the folder of a unit.
    marker = " -m experiments.launching.host "
    folders = [
        Path(shlex.split(line)[-1])
        for line in planned.stdout.splitlines()
        if marker in line
    ]
    if not folders:
        return
    script = folders[0].parent / "xmanager-host.sh"
    script.write_text(
        f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(_ROOT))} exec {shlex.quote(python)} "
        '-m experiments.launching.host "${1#--unit=}"\n'
    )
    script.chmod(0o755)
    with xm_local.create_experiment(experiment_title=folders[0].parent.name) as made:
        (executable,) = made.package(
            [xm.binary(executor_spec=xm_local.Local.Spec(), path=str(script))]
        )
        for folder in folders:
            told = json.loads((folder / "unit.json").read_text())
            made.add(
                xm.Job(
                    executable=executable,
                    executor=xm_local.Local(),
                    args={"unit": str(folder)},
                    name=" ".join(told["point"].values()) or folder.name,
                )
            )


def _declared(words: Sequence[str]) -> list[str]:
    """The words, each known to absl as a flag, so that it lets them through."""
    for word in words:
        name, equals, _ = word.lstrip("-").partition("=")
        if name not in flags.FLAGS:
            define = flags.DEFINE_string if equals else flags.DEFINE_bool
            define(name, None, "A flag of `retro launch`.")
    return [*words]


# XManager imports this module, parses flags by itself and then calls `main`.
_WORDS = _declared(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else [])
