"""The project's commands, run as users run them."""

import subprocess
from pathlib import Path

from tests import forked

ROOT = Path(__file__).parents[1]
TINY = "--config=experiments/configs/tiny.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m` with these words, at the root of the project."""
    return forked.run(*arguments, timeout=120)


def check_mistake(arguments: tuple[str, ...], expected: str, folder: Path) -> None:
    """The command ends with a line that says what is wrong, and builds nothing.

    Args:
        arguments: words in which {tmp} stands for the folder.
        expected: part of the message.
    """
    made = run(*(word.format(tmp=folder) for word in arguments))
    assert made.returncode not in (0, -6, -11)
    assert expected in made.stderr
    assert "Traceback" not in made.stderr
    assert not (folder / "manifest.json").exists()
