"""The site is built without a warning, and its pages ask no other host for anything."""

import subprocess
import sys

import pytest

from tests.commands import ROOT

pytest.importorskip("sphinx", reason="make install-docs")


def test_pages_are_built_and_no_warning_is_left(tmp_path):
    """All but the notebooks' cells, which `make docs` runs."""
    command = [sys.executable, "-m", "sphinx", "-E", "-W", "--keep-going", "-q"]
    # Of cells that are not run no language is known.
    quiet = "myst-nb.lexer"
    command += ["-D", "nb_execution_mode=off", "-D", f"suppress_warnings={quiet}"]
    command += ["docs", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api.html").read_text()
    assert "neighbour_lengths_BCN" in page and "exclude_documents" in page
    assert "learning_rate" in (tmp_path / "site" / "settings.html").read_text()
