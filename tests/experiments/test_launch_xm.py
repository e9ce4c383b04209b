"""Three work units go through XManager, where it is installed (RETRO_XMANAGER or PATH)."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.commands import ROOT
from tests.experiments.launching.units import unit

_XMANAGER = os.environ.get("RETRO_XMANAGER") or shutil.which("xmanager")


@pytest.mark.skipif(_XMANAGER is None, reason="XManager is not installed")
def test_three_units_run_through_xmanager(tmp_path):
    units = [
        unit(tmp_path / "a sweep", ["say:hello"], number=number, seed=str(number))
        for number in range(3)
    ]
    python = tmp_path / "python"
    lines = "\n".join(
        f"echo \"python -m experiments.launching.host '{made.folder}'\""
        for made in units
    )
    # In place of planning, which `test_launch` tests, it names the units.
    python.write_text(
        f'#!/bin/sh\nif [ "$2" = experiments.launch ]; then\necho "$@" > {tmp_path}/words\n'
        f'{lines}\nelse\nexec {sys.executable} "$@"\nfi\n'
    )
    python.chmod(0o755)
    done = subprocess.run(
        [_XMANAGER, "launch", "experiments/launch_xm.py", "--"]
        + ["--config=tiny", "--sweep", "--config.train.steps=3"],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),  # where XManager keeps its own database
            "RETRO_PYTHON": str(python),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    words = "--config=tiny --sweep --config.train.steps=3 --executor=print"
    assert (tmp_path / "words").read_text() == f"-m experiments.launch {words}\n"
    assert [made.status()["state"] for made in units] == ["finished"] * 3
