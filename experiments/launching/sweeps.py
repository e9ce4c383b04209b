"""Sweeps: a config file names the settings of its work units beside its `get_config`.

    def sweep(add):
        for seed in range(5):
            add(**{"train.seed": seed})

Each call of `add` is one work unit, whose settings are read and checked as flags are. A sweep
that takes a second argument gets what stands behind the colon of `--config=FILE:ARG`.

`init_from="unit:LABEL"` starts a unit from the model of another one of the same sweep and seed,
whose settings without the seed are LABEL (`model.depth=2`). Units whose `data.*` differ get a
database each; those that differ in `data.num_neighbours` alone share one, which has the most.
"""

import dataclasses
import hashlib
import importlib.util
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments import command_line, config

SEED = "train.seed"
OF_UNIT = "unit:"  # before the label of the unit that another one starts from
Point = dict[str, str]  # setting -> value, as a flag has it


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
    """A work unit to be: what the sweep says of it, and all of its settings."""

    point: Point
    experiment: config.Experiment
    after: int | None = None  # the number of the unit from whose model it starts

    @property
    def of_data(self) -> str:
        """What units that share a database have in common."""
        settings = dataclasses.asdict(self.experiment.data)
        del settings["num_neighbours"]
        return json.dumps(settings, sort_keys=True)


def planned(words: Sequence[str], *, sweep: bool) -> list[Planned]:
    """The work units of a command line, all of them checked.

    Args:
        words: `--config=`, `--corpus=` and `--config.a.b=`, which all units share.
        sweep: a unit for each point of the config file's sweep; otherwise it is one.
    Raises:
        ValueError: for a wrong setting, of the words or of a point, which it names.
    """
    shared = command_line.experiment([*words])
    if not sweep:
        return [Planned({}, shared)]
    typed = {word.lstrip("-").partition("=")[0] for word in words}
    found: list[Planned] = []
    for number, point in enumerate(points(command_line.config_of(words))):
        name = f"point {number} of the sweep ({label(point)})"
        for setting in point:
            if f"config.{setting}" in typed:
                raise ValueError(
                    f"{name}: --config.{setting} is given too; leave it out, or launch "
                    "without --sweep"
                )
        settings = dict(point)
        try:
            after = _start(point, found)
            if after is not None:
                del settings["init_from"]
            made = command_line.changed(shared, [*_flags(settings)])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if after is not None and not made.has_cca:
            raise ValueError(f"{name}: a baseline starts from no other unit")
        found.append(Planned(point, made, after))
    return found


def _start(point: Point, before: Sequence[Planned]) -> int | None:
    """The number of the unit from which a point starts; None if it is no unit's model."""
    start = point.get("init_from", "")
    if not start.startswith(OF_UNIT):
        return None
    wanted, seed = start.removeprefix(OF_UNIT), point.get(SEED)
    for number, plan in enumerate(before):
        is_it = label(without_seed(plan.point)) == wanted
        if is_it and plan.point.get(SEED) == seed:
            return number
    raise ValueError(f"no point of the same seed before it is {wanted!r}")


def databases(planned: Sequence[Planned], shared: Path, out: Path) -> list[Path]:
    """The database of each unit: `shared` is that of the first, others stand in `out`."""
    found = {planned[0].of_data: shared}
    for plan in planned:
        digits = hashlib.sha256(plan.of_data.encode()).hexdigest()[:8]
        found.setdefault(plan.of_data, out / f"database-{digits}")
    return [found[plan.of_data] for plan in planned]


def points(config_file: str) -> list[Point]:
    """What the sweep of `FILE` or `FILE:ARG` adds, in its order.

    Raises:
        ValueError: if there is no sweep, it adds nothing or one point twice, or it fails.
    """
    path, _, argument = config_file.partition(":")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if (sweep := getattr(module, "sweep", None)) is None:
        raise ValueError(
            f"{path} has no sweep: define sweep(add) in it, or launch without --sweep"
        )
    found: list[Point] = []

    def add(**settings: object) -> None:
        point = {name: _text(value) for name, value in settings.items()}
        if point in found:
            raise ValueError(f"{path}: sweep adds {label(point)} twice")
        found.append(point)

    try:
        takes = len(inspect.signature(sweep).parameters)
        sweep(*(add, argument)[: max(takes, 1)])
    except ValueError:
        raise
    except Exception as error:  # code of the user's
        raise ValueError(f"{path}: sweep fails: {error!r}") from error
    if not found:
        raise ValueError(f"{path}: sweep adds no work unit")
    return found


def label(point: Point) -> str:
    """A point in a few words: `train.seed=0 optimizer.learning_rate=0.001`."""
    return " ".join(f"{name}={value}" for name, value in point.items())


def without_seed(point: Point) -> Point:
    """What units that differ in their seed alone have in common."""
    return {name: value for name, value in point.items() if name != SEED}


def _flags(point: Point) -> Iterator[str]:
    return (f"--config.{name}={value}" for name, value in point.items())


def _text(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)
