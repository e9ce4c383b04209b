"""The command answers at once, from any folder, and Ctrl-C at any moment of its own."""

import os
import signal
import subprocess
import sys
from configparser import ConfigParser

from tests.commands import ROOT

# What the console script does.
_RETRO = [sys.executable, "-c", "from experiments.retro import main; main()"]
_ENV = os.environ | {"PYTHONPATH": str(ROOT)}


def test_it_is_installed_as_a_console_script():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    scripts = setup["options.entry_points"]["console_scripts"]
    assert scripts.strip() == "retro = experiments.retro:main"


def test_ctrl_c_before_the_first_import_is_a_line_and_no_traceback(tmp_path):
    """The signal waits until Python can answer it, so that this is no race."""
    block = (
        f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {{{signal.SIGINT}}});"
    )
    send = "import os; os.kill(os.getpid(), signal.SIGINT);"
    command = [sys.executable, "-c", block + send + _RETRO[2], "train"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=_ENV,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130
    assert done.stderr.strip() == "stopped; the same command goes on from here"
    assert not list(tmp_path.iterdir())


def test_another_package_of_that_name_in_the_folder_is_not_taken(tmp_path):
    (tmp_path / "experiments").mkdir()
    for name in ("__init__", "main", "build_database", "retro"):
        (tmp_path / "experiments" / f"{name}.py").write_text("raise SystemExit(9)")
    script = tmp_path / "bin" / "retro"  # its folder is in front of sys.path
    script.parent.mkdir()
    script.write_text(_RETRO[2])
    done = subprocess.run(
        [sys.executable, script, "train", "--corpus=/no/such/place"],
        cwd=tmp_path,
        env=_ENV,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: corpus '/no/such/place': no such path")
    assert not (tmp_path / "work").exists()
