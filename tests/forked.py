"""Programs in processes that are forked from one with the large imports: each starts in no time."""

import atexit
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_CONTEXT = multiprocessing.get_context("forkserver")
# What commands import, but no module that defines flags: those are imported in the child.
_CONTEXT.set_forkserver_preload(
    ["tensorflow_datasets", "data_pipeline.build.pipeline", "experiments.jobs.job"]
)


class Program:
    """`python -m MODULE WORDS`, started; looks like a `subprocess.Popen` of text."""

    def __init__(
        self,
        module: str,
        *words: str,
        env: Mapping[str, str] | None = None,
        cwd: Path = _ROOT,
    ):
        """Starts it in `cwd`, with the environment of this process if none is given."""
        folder = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, folder)
        self._said, self._errors = folder / "said", folder / "errors"
        self._said.touch()  # `said` may look before the child is there
        outputs = str(self._said), str(self._errors)
        task = [module, *words], dict(env or os.environ), str(cwd), outputs
        self._process = _CONTEXT.Process(target=_do, args=task)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """As of a `Popen`: None while it runs, a signal's number below zero."""
        return self._process.exitcode

    poll = returncode.fget

    def said(self) -> str:
        """What it has printed so far."""
        return self._said.read_text()

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Ends it at once, if it still runs."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> None:
        """Waits until it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits until it has ended; gives its output and its errors."""
        self.wait(timeout)
        return self.said(), self._errors.read_text()


def run(module: str, *words: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Runs `python -m MODULE WORDS` at the root of the project, to its end."""
    program = Program(module, *words)
    try:
        said, errors = program.communicate(timeout)
    finally:
        program.kill()
        program.wait()
    return subprocess.CompletedProcess(
        [module, *words], program.returncode or 0, said, errors
    )


def _do(argv: list[str], env: dict, folder: str, outputs: tuple[str, str]) -> None:
    """Does in the child what the interpreter does for `python -m`, to its end."""
    import jax

    for number, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    for name, value in env.items():
        known = getattr(jax.config, name.lower(), None) if name[:4] == "JAX_" else None
        if known is not None or name == "JAX_COMPILATION_CACHE_DIR":
            jax.config.update(name.lower(), type(known or "")(value))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = argv
    try:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
