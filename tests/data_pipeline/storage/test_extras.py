"""What is missing is named with a command that works where the user is."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.storage import extras

ROOT = Path(__file__).parents[3]


def test_every_extra_that_is_named_can_be_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(extras.EXTRAS.values()) <= set(setup["options.extras_require"])


def test_no_command_asks_an_index_for_this_project():
    command = extras.install_command("data")
    assert command == f"{sys.executable} -m pip install -e '{ROOT}[data]'"


def test_a_library_that_is_missing_is_explained_once():
    error = ModuleNotFoundError("No module named 'pyarrow.lib'", name="pyarrow.lib")
    assert extras.explained(error).endswith("[data]'")
    told = ModuleNotFoundError("bm25s: pip install it", name="bm25s")
    assert extras.explained(told) == str(told)
    assert extras.explained(ValueError("x")) == "x"
    assert extras.explained(ModuleNotFoundError("x", name="mine")) == "x"


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        ('{"url": "file:///a/b", "dir_info": {}}', "file:///a/b"),
        ('{"url": "https://h/r", "vcs_info": {"vcs": "git"}}', "git+https://h/r"),
    ],
)
def test_an_installed_package_names_where_it_came_from(
    monkeypatch, tmp_path, origin, wanted
):
    class Distribution:
        def read_text(self, name):
            return origin

    monkeypatch.setattr(extras, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    monkeypatch.setattr(
        extras.importlib.metadata, "distribution", lambda name: Distribution()
    )
    assert extras.install_command("hf").endswith(f"'retro-jax[hf] @ {wanted}'")


def test_tensorboard_starts():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import tensorboard.main"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
