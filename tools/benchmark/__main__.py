"""Measures the parts, beside what others do where there are others.

    python -m tools.benchmark embed --out=docs/results/embed.json
    python -m tools.benchmark render

One sub-command a part: a function from its arguments to a `Result`. Contestants take
turns round by round, so a busy machine slows all of them alike. Only the part that is run
is imported: `train` needs JAX and no TensorFlow. Each part's module has its command.
`render` writes docs/benchmarks/ from the committed results.
"""

import argparse
import importlib
import os
import pathlib
import sys
from collections.abc import Sequence

from tools.benchmark import page
from tools.benchmark.result import command_line, positive, print_result, write_result

# Part -> what it measures, and its default number of rounds.
_PARTS = {
    "embed": ("chunks a second of the embedder, beside sentence-transformers", 5),
    "index": ("build time, recall and queries a second of the indexes", 5),
    "service": ("queries a second and latencies of the retrieval service", 5),
    "serving": ("first tokens, tokens a second and failures of a model's server", 5),
    "hybrid": ("questions whose paragraph is found by vectors, words and both", 1),
    "database": ("time to open, load and search a database, and memory", 5),
    "faults": ("what kills, stalls, overload and damage leave: counts", 1),
    "growth": ("costs of each stage of a build at several sizes, and a plan", 1),
    "input": ("examples a second that the input pipeline delivers", 3),
    "retrieval": ("bits per byte of trained models, retrieval on, off and random", 1),
    "retrofit": ("a retrofit's step beside its frozen decoder's forward pass", 5),
    "sweep": ("a sweep with a kill and a preemption: ends, overhead, first steps", 1),
    "train": ("tokens a second, FLOP/s and memory of whole optimizer steps", 5),
    "generate": ("tokens a second of generation, beside a pass for each token", 3),
    "peer": ("whole optimizer steps beside RETRO-pytorch's", 5),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the sub-command in `argv`, prints its table and writes it as JSON."""
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["render"]:
        page.write(page.render())
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="part", metavar="PART")
    for part, (what, rounds) in _PARTS.items():
        command = commands.add_parser(part, help=what, description=what)
        if part not in argv[:1]:
            continue
        room = "faults" if part in ("faults", "sweep") else "benchmark"
        module = importlib.import_module(f"tools.{room}.{part}")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
        command.add_argument("--rounds", type=positive, default=rounds)
        command.add_argument("--out", type=pathlib.Path, help="JSON file to write")
    args = parser.parse_args(argv)
    try:
        result = args.run(args)
    except (ValueError, OSError) as error:
        if os.environ.get("RETRO_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    result.conditions["command"] = command_line("tools.benchmark", argv)
    print_result(result)
    if args.out is not None:
        write_result(result, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
