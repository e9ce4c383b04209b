"""A module in a process of its own is this project's, wherever it is started."""

import subprocess

from experiments import modules


def test_a_module_of_the_user_s_folder_is_not_taken_for_ours(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise SystemExit(9)")
    done = subprocess.run(
        modules.command(["experiments.retro", "--version"]),
        env=modules.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("retro ")
