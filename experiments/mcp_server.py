"""Gives assistants a database as tools, by the Model Context Protocol: `search` and `fetch`.

    retro mcp [--corpus=PATH] [--workdir=DIR] [--database=DIR] [--port=PORT]

An assistant starts it as a process of its own and talks to it by standard input and output.
With `--port` it serves http://127.0.0.1:PORT/mcp instead, to this machine alone. `python -m
experiments.mcp_server` is the same.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.storage.printing import protect_streams
from experiments import command_line, workdirs
from experiments.jobs import remote_database


def main(argv: Sequence[str] | None = None) -> int:
    """Serves what the command line says until it is stopped; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="retro mcp",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    workdirs.add_arguments(parser)
    parser.add_argument(
        "--port", type=int, metavar="PORT", help="serve HTTP there, not standard input"
    )
    args = parser.parse_args(argv)
    return command_line.run(lambda _: _serve(args), [])


def _serve(args: argparse.Namespace) -> None:
    folder = workdirs.database_of(args)
    remote_database.folder_only(folder, "this command")
    if args.port is not None and not 0 < args.port < 65536:
        raise ValueError(f"--port must be in 1..65535, is {args.port}")
    from data_pipeline.database import Database  # takes seconds: flags come first
    from experiments.serving import tools
    from experiments.serving.passages import Passages

    passages = Passages(Database.open(folder))
    made = tools.server(passages, Path(folder).resolve().name)
    if args.port is None:
        made.run("stdio")
    else:
        print(f"serving http://127.0.0.1:{args.port}/mcp", file=sys.stderr, flush=True)
        made.run("streamable-http", port=args.port)


if __name__ == "__main__":
    # Accelerators are for builds and training.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    protect_streams()
    command_line.end_at_interrupt()
    sys.exit(main())
