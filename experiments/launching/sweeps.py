"""Sweeps: a config file names the settings of its work units beside its `get_config`.

    def sweep(add):
        for seed in range(5):
            add(**{"train.seed": seed})

Each call of `add` is one work unit, whose settings are read and checked as flags are.
"""

import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments import command_line, config

SEED = "train.seed"
Point = dict[str, str]  # setting -> value, as a flag has it


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
    """A work unit to be: what the sweep says of it, and all of its settings."""

    point: Point
    experiment: config.Experiment


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
    found = []
    for number, point in enumerate(points(command_line.config_of(words))):
        name = f"point {number} of the sweep ({label(point)})"
        for setting in point:
            if setting.startswith("data."):
                raise ValueError(
                    f"{name}: all units share one database, so data.* can't be swept; "
                    "launch once for each, with a --database each"
                )
            if f"config.{setting}" in typed:
                raise ValueError(
                    f"{name}: --config.{setting} is given too; leave it out, or launch "
                    "without --sweep"
                )
        try:
            made = command_line.changed(shared, [*_flags(point)])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        found.append(Planned(point, made))
    return found


def points(config_file: str) -> list[Point]:
    """What the sweep of `FILE` or `FILE:ARG` adds, in its order.

    Raises:
        ValueError: if there is no sweep, it adds nothing or one point twice, or it fails.
    """
    path = config_file.partition(":")[0]
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
        sweep(add)
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
