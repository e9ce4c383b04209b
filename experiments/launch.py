"""Launches one run or a sweep of them, each a work unit with a folder of its own.

    retro launch --config=FILE[:ARG] [--sweep] --out=DIR [--config.a.b=VALUE ...]
    retro launch status DIR
    retro launch dashboard DIR

Units whose data.* is the same share a database, which is built first if it is not there. Units that are finished
are skipped; what failed is listed with its last line, and --restart_failed starts it again.
--executor=print, slurm, gke and skypilot start nothing: they write the files of each unit and
print the commands that submit them. Ctrl-C asks all to save and stop, and the same command goes on. Exit statuses: 0 all are
finished; 2 some have failed, or a mistake; 75 stopped by SIGTERM; 130 by Ctrl-C.
"""

import argparse
import dataclasses
import difflib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline.sequences.batches import num_neighbours
from data_pipeline.storage import locks
from data_pipeline.storage.files import read_json, write_file, write_json
from data_pipeline.storage.printing import protect_streams
from data_pipeline.storage.progress import say
from experiments import command_line, workdirs
from experiments.launching import (
    clusters,
    dashboard,
    local,
    provenance,
    seeds,
    status,
    sweeps,
    work_units,
)
from experiments.launching.host import Child

EXECUTORS = ("local", *clusters.EXECUTORS)
_OF_THIS_MACHINE = ("folder", "last_line", "training_left_s")  # of a unit's row
_OF_CONFIG = ("config", "corpus")  # flags that are read as `retro train` reads them


def main(words: Sequence[str]) -> int:
    """Launches, or shows a launch; gives the exit status."""
    if words[:1] == ["status"]:
        args = _status_parser().parse_args(words[1:])
        show(_place(args.dir), is_json=args.json)
        if args.keep is not None:
            _keep(_place(args.dir), _place(args.keep))
        return 0
    if words[:1] == ["dashboard"]:
        args = _dashboard_parser().parse_args(words[1:])
        out = _place(args.dir)
        path = _place(args.out) if args.out else out / dashboard.FILE
        dashboard.write(out, path)
        say(f"dashboard: {path}")
        return 0
    args, others = _parser().parse_known_args(words)
    for word in others:
        _check_setting(word)
    if not any(word.startswith("--config=") for word in others):
        raise ValueError("name what to run: --config=tiny, or another (retro --help)")
    return _launch(args, others)


def _launch(args: argparse.Namespace, words: list[str]) -> int:
    limits = local.Limits(
        parallel=args.parallel, restarts=args.restarts, grace_s=args.grace_s
    )
    limits.validate()
    place = _cluster(args)
    planned = sweeps.planned(words, sweep=args.sweep)
    _check_hosts(args.hosts, planned)
    out = _place(args.out)
    database = _place(args.database) if args.database else out / "database"
    with command_line.new_folder(out), locks.locked(out / ".launching", "launching in"):
        workdirs.check_corpus(database, planned[0].experiment.data.corpus)
        databases = sweeps.databases(planned, database, out)
        builders = _builders(planned, databases)
        typed = shlex.join(words)
        units = work_units.write(planned, out, databases, args.hosts, typed)
        to_do, failed = _to_do(units, args.restart_failed)
        say(
            f"{len(units)} work units in {out}, {len(units) - len(to_do) - failed} done"
        )
        if args.executor != "local":
            building = _building(builders, units) if to_do else []
            _tell(args.executor, to_do, place, building, out)
            return 0
        for build in _building(builders, units) if to_do else ():
            if stopped := _build(build):
                return stopped
        ended = local.run(to_do, limits, say)
    show(out)
    return ended or (2 if failed else 0)


def _cluster(args: argparse.Namespace) -> clusters.Place:
    """Where units run that don't run here, as the flags say."""
    names = {field.name for field in dataclasses.fields(clusters.Place)}
    known = {name: value for name, value in vars(args).items() if name in names}
    place = clusters.Place(**known | {"grace_s": int(args.grace_s)})
    place.validate(args.executor, args.hosts)
    return place


def _tell(
    executor: str,
    units: Sequence[work_units.Unit],
    place: clusters.Place,
    building: Sequence[list[str]],
    out: Path,
) -> None:
    """Writes what starts units elsewhere, and prints the commands, in their order."""
    for build in building:
        say(shlex.join([place.python, "-m", *build]))
    for line in clusters.commands(units, place) if executor == "print" else ():
        say(line)
    for name, text in clusters.rendered(executor, units, place).items():
        path = out / executor / name
        path.parent.mkdir(exist_ok=True)
        write_file(path, text)
        say(clusters.submitted(executor, str(path)))


def _to_do(units: Sequence[work_units.Unit], restart_failed: bool) -> tuple[list, int]:
    """The units that are to run, and how many stay failed; says which and why."""
    found, failed = [], 0
    for unit in units:
        known = unit.status()
        if known.get("state") == "failed" and not restart_failed:
            failed += 1
            say(
                f"{unit.name} failed before: {known.get('last_line')} (--restart_failed "
                "starts it again)"
            )
        elif not unit.is_finished:
            found.append(unit)
    return found, failed


def _builders(
    planned: Sequence[sweeps.Planned], databases: Sequence[Path]
) -> dict[Path, int]:
    """The unit by whose settings each database is built: the one that reads most neighbours.

    Raises:
        ValueError: if one is there that has too few.
    """
    most: dict[Path, int] = {}
    for number, (plan, database) in enumerate(zip(planned, databases, strict=True)):
        wanted = plan.experiment.data.num_neighbours
        best = planned[most.setdefault(database, number)].experiment.data
        if wanted > best.num_neighbours:
            most[database] = number
        has = num_neighbours(database / "dataset" / "all")
        if has is not None and wanted > has:
            raise ValueError(
                f"{database} has {has} neighbours a chunk, and unit-{number:03} reads "
                f"{wanted}: build it with --config.data.num_neighbours={wanted}, or name "
                "another --database"
            )
    return most


def _building(
    builders: Mapping[Path, int], units: Sequence[work_units.Unit]
) -> list[list[str]]:
    """Modules and flags that build what is not there, each by the settings of a unit."""
    return [
        [
            "experiments.build_database",
            f"--config=run:{units[number].folder}",
            f"--database={database}",
        ]
        for database, number in builders.items()
        if not (database / "dataset" / "all").is_dir()
    ]


def _build(words: list[str]) -> int:
    """Builds a database; gives the exit status."""
    child = Child()
    with child.listening():
        ended = child.run(
            words, lambda line: say(line.decode(errors="replace").rstrip())
        )
    if ended and not child.asked_to_stop:
        say("the database could not be built, and nothing was started")
    return ended


def show(out: Path, *, is_json: bool = False) -> None:
    """Prints the table of a launch and what its seeds have found; keeps both as summary.json."""
    units = work_units.read(out)
    rows, found = status.rows(units), seeds.summary(units)
    made = {
        "units": rows,
        "variants": found,
        "made": provenance.of_launch(units),
    }
    if os.access(out, os.W_OK):
        write_json(out / "summary.json", made)
    if is_json:
        print(json.dumps(made, indent=1))
        return
    for line in [*status.lines(rows), *seeds.lines(found)]:
        say(line)


def _keep(out: Path, path: Path) -> None:
    """Writes what a launch has found where a report takes it from, without its folders.

    Raises:
        ValueError: if no unit is finished.
    """
    made = read_json(out / "summary.json") or {}
    if not made.get("variants"):
        raise ValueError(f"{out} has no result to keep: no unit of it is finished")
    units = [
        {name: value for name, value in row.items() if name not in _OF_THIS_MACHINE}
        for row in made["units"]
    ]
    with command_line.new_folder(path.parent):
        write_json(path, made | {"units": units})
    say(f"kept in {path}")


def _place(path: str) -> Path:
    if not path:
        raise ValueError("the name of a folder is empty")
    return Path(workdirs.expanded(path)).absolute()


def _check_setting(word: str) -> None:
    """Raises ValueError for a word that neither the launcher nor a config knows."""
    name = word.partition("=")[0].lstrip("-")
    if not word.startswith("--"):
        raise ValueError(f"unknown argument {word!r}; flags are written --name=value")
    if "=" not in word and name.partition(".")[0] in _OF_CONFIG:
        raise ValueError(f"{word} needs a value: {word}=VALUE")
    if name.partition(".")[0] in _OF_CONFIG:
        return
    if name == "workdir":
        raise ValueError("--workdir is a unit's own: name the folder of all by --out")
    known = [action.option_strings[0] for action in _parser()._actions]
    close = difflib.get_close_matches(f"--{name}", known, n=1)
    meant = f"; did you mean {close[0]}?" if close else " (retro launch --help)"
    raise ValueError(f"there is no flag --{name}{meant}")


def _check_hosts(hosts: int, planned: Sequence[sweeps.Planned]) -> None:
    """Raises ValueError if a run of so many processes can't split its batches."""
    if hosts < 1:
        raise ValueError(f"--hosts must be at least 1, is {hosts}")
    for plan in planned:
        cfg = plan.experiment
        if cfg.mesh.model == 1 and cfg.train.batch_size % hosts:
            raise ValueError(
                f"--hosts={hosts} does not divide train.batch_size="
                f"{cfg.train.batch_size}: each host reads its share of every batch"
            )


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="retro launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--sweep",
        action="store_true",
        help="a unit for each point of the config's sweep",
    )
    add("--executor", choices=EXECUTORS, default="local", help="what runs them [local]")
    add("--out", metavar="DIR", required=True, help="the folder of the launch")
    add("--database", metavar="DIR", help="the database of all units [DIR/database]")
    add("--hosts", type=int, default=1, help="processes of each unit [1]")
    add("--parallel", type=int, default=1, help="units at a time, local [1]")
    add("--restarts", type=int, default=10, help="of a unit that was taken away [10]")
    add("--grace_s", type=float, default=120.0, help="to save and stop in [120]")
    add("--restart_failed", action="store_true", help="starts failed units again")
    add("--coordinator", default="", metavar="HOST:PORT", help="first host, print")
    add("--accelerator", default="", metavar="KIND:SHAPE", help="v5p:2x2x2, h100:8")
    add("--partition", default="", metavar="NAME", help="of Slurm")
    add("--time_min", type=int, default=1440, help="of a job of Slurm [1440]")
    add("--image", default="", help="of containers: gke, skypilot")
    add("--claim", default="", metavar="NAME", help="volume with DIR and database, gke")
    add("--volume", default="", metavar="PATH", help="where it is mounted, gke")
    add("--python", default="python", help="the Python on the hosts [python]")
    return parser


def _status_parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="retro launch status",
        description="Shows how far the units of a launch are.",
    )
    parser.add_argument("dir", metavar="DIR", help="the --out of the launch")
    parser.add_argument(
        "--json", action="store_true", help="prints summary.json instead"
    )
    parser.add_argument(
        "--keep", metavar="FILE", help="writes what was found for `make report`"
    )
    return parser


def _dashboard_parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog="retro launch dashboard",
        description="Writes one page with the curves and the table of all units.",
    )
    parser.add_argument("dir", metavar="DIR", help="the --out of the launch")
    parser.add_argument("--out", metavar="FILE", help="[DIR/dashboard.html]")
    return parser


def run(words: Sequence[str]) -> int:
    """Launches as the words say; gives the exit status, also of a mistake."""
    ended = 0

    def command(_: list[str]) -> None:
        nonlocal ended
        ended = main(words)

    return command_line.run(command, []) or ended


if __name__ == "__main__":
    protect_streams()
    command_line.end_at_interrupt()
    sys.exit(run(sys.argv[1:]))
