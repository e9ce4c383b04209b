"""The words of the command `retro`, and the modules that do what they say.

A word is followed by the flags of its module; there are no flags here. No large library is
imported before a module is chosen.
"""

import argparse
import difflib
import os
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

import retro_jax
from experiments import interrupts, modules, workdirs

USER_ERROR = 2  # as in `command_line`, which takes a while to import

_HELP = """\
retro: a language model that reads passages retrieved from a database of text.

    retro train                     builds a database, trains a model and writes its report
    retro database                  builds or refreshes the database alone
    retro search "TEXT"             finds the passages nearest to a text
    retro generate "PROMPT"         continues a text and prints the passages that were read
    retro evaluate                  measures a trained model again, or on other text
    retro export --out=FOLDER       writes the model as a folder that needs nothing else
    retro show | stats | verify     looks into the database and checks it
    retro add | delete | compact | versions      changes the database
    retro copy FROM TO              copies a folder to an object store (gs://, s3://), or back
    retro serve                     serves the database over gRPC
    retro serve-model               serves the model over HTTP, with its sources and a page
    retro mcp                       gives assistants the database as tools (MCP)
    retro launch --out=DIR          runs a sweep of work units, here or on a cluster
    retro settings                  lists every setting, with its type, value and meaning
    retro COMMAND --help            the command's flags;  retro --version

Flags that all of them take:
    --corpus=PATH     your text: a folder, a file, tfds:NAME, hf:NAME, factbook or python [factbook]
    --workdir=DIR     the folder of the run [one of the corpus's own below work/, else work/CONFIG]
    --database=DIR    the folder of the database [WORKDIR/database]
What trains and builds also takes
    --config=NAME     retrofit:DECODER, tiny, retro:172m or a file [the run's own, else retrofit]
    --config.train.steps=30 and its like, for each line of `retro settings`

For example: retro train --corpus=~/notes --config.train.steps=300
             retro search --corpus=~/notes "how are dates parsed"

More flags are taken from the environment variable RETRO_ARGS, as a shell would split them."""

_MAIN, _SERVE = "experiments.main", "data_pipeline.service.serve_local"
# What a command runs, one after the other: modules with their first flags.
_MODULES: dict[str, list[list[str]]] = {
    "train": [[_MAIN, f"--job={job}"] for job in ("database", "train", "evaluate")],
    "database": [["experiments.build_database"]],
    "evaluate": [[_MAIN, "--job=evaluate"]],
    "generate": [[_MAIN, "--job=generate"]],
    "export": [[_MAIN, "--job=export"]],
    "launch": [["experiments.launch"]],
    "copy": [["experiments.copy_stored"]],
    "serve-model": [["experiments.server"]],
    "mcp": [["experiments.mcp_server"]],
}
_OF_DATABASES = [
    "search",
    "show",
    "stats",
    "verify",
    "add",
    "delete",
    "compact",
    "versions",
]
COMMANDS = (*_MODULES, *_OF_DATABASES, "serve", "settings")


def run() -> None:
    """Runs what the command line says; ends the process with its exit status."""
    command, words = _words(sys.argv[1:])
    if command in _OF_DATABASES:
        from experiments import database

        database.start([command, *words], prog="retro")
    elif command == "serve":
        _serve(words)
    elif command == "settings":
        from experiments import command_line

        command_line.print_settings(words)
    else:
        _run(_MODULES[command], words)


def _words(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command and its flags, with those of the environment; answers --help itself."""
    command, *words = argv or ["--help"]
    if command in ("--help", "-h", "help"):
        print(_HELP)
        sys.exit(0)
    if command == "--version":
        print(f"retro {retro_jax.__version__}")
        sys.exit(0)
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        meant = f"; did you mean {close[0]}?" if close else " (retro --help lists them)"
        _fail(f"there is no command {command!r}{meant}")
    try:
        # Given up here: the modules that are started have got them.
        return command, [*shlex.split(os.environ.pop("RETRO_ARGS", "")), *words]
    except ValueError as error:
        _fail(f"RETRO_ARGS (ARGS of make) can't be taken apart: {error}")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USER_ERROR)


def _run(steps: list[list[str]], words: list[str]) -> None:
    """Runs modules with the same flags: the last one here, each before in its own process.

    So what a step held in memory is free for the next. The first one that fails is the last.
    """
    *first, (module, *flags) = steps
    of_flags = words[: words.index("--")] if "--" in words else words
    if not {"--help", "-h"}.intersection(of_flags):
        for step in first:
            if status := _status_of(step, words):
                sys.exit(status)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.argv[1:] = [*flags, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _status_of(step: list[str], words: list[str]) -> int:
    """Runs a module in a process of its own, which gets the signals that this one gets."""
    # Held back until there is somebody who can answer it: here, and in the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process = subprocess.Popen(
        modules.command([*step, *words]), env=modules.environment()
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda got, frame: process.send_signal(got))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    status = process.wait()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    interrupts.end_at_interrupt()
    return status if status >= 0 else 128 - status


def _serve(words: list[str]) -> None:
    """Serves the database that the flags name; all other flags are the server's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    workdirs.add_arguments(parser)
    args, others = parser.parse_known_args(words)
    try:
        database = workdirs.database_of(args)
    except ValueError as error:
        _fail(str(error))
    sys.argv[1:] = [f"--database={database}", *others]
    runpy.run_module(_SERVE, run_name="__main__", alter_sys=True)
