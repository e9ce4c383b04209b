"""Commands in processes that are forked after the large imports: each starts in no time.

    python -m tests.forked_commands < TASKS > RESULTS

A task is a line of JSON: `module` and `words` as typed behind `python -m`, `parse` (whether
to stop once the command line is understood), `folder` to stand in and `args` for the
environment. So is a result: `status` and `output`. The toy embedder stands in for all, and the
configuration `tiny` for the one that a command runs which names none.
"""

import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback
from typing import NoReturn

from data_pipeline.service.server import server
from experiments import command_line, commands, workdirs
from tools.faults.toy_embedder import in_place_of_all

_LARGE = (
    "tensorflow_datasets",
    "data_pipeline.build.pipeline",
    "experiments.jobs.export",
    "experiments.jobs.job",
)


workdirs.DEFAULT_CONFIG = "tiny"


def _run(module: str, words: list[str]) -> NoReturn:
    """Runs a module as `python -m` does."""
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def _part(step: list[str], words: list[str]) -> int:
    """Stands in for `commands._status_of`: a part of a command is forked, not started."""
    return _forked(lambda: _run(step[0], [*step[1:], *words]))


def _only_parse() -> None:
    """Has every command end when its flags are parsed and its settings are validated."""
    command_line.run = lambda command, argv: 0
    server.run = lambda start, **_: 0  # type: ignore[assignment]
    commands._status_of = lambda step, words: 0


def _forked(work) -> int:
    """Does the work in a child; gives the status that the child ends with."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise AssertionError("the child has ended")


def _do(task: dict) -> dict:
    with tempfile.TemporaryFile() as output:

        def work() -> None:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.chdir(task["folder"])
            os.environ["RETRO_ARGS"] = task["args"]
            if task["parse"]:
                _only_parse()
            _run(task["module"], task["words"])

        status = _forked(work)
        output.seek(0)
        return {"status": status, "output": output.read().decode(errors="replace")}


def main() -> None:
    """Imports what commands import, but no module that defines flags; then forks."""
    for module in _LARGE:
        importlib.import_module(module)
    commands._status_of = _part
    with in_place_of_all():
        for line in sys.stdin:
            print(json.dumps(_do(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
