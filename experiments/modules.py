"""Modules of this project, started in processes of their own."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = str(Path(__file__).parents[1])


def command(words: Sequence[str]) -> list[str]:
    """The command line that runs a module, the first of the words, with the others as flags.

    The module is looked for beside this one and not in the user's folder (-P).
    """
    return [sys.executable, "-P", "-m", *words]


def environment() -> dict[str, str]:
    """This process's environment, in which `command` finds the module."""
    paths = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": paths}
