"""The settings of a run that was made before, as its folder keeps them.

    retro evaluate --config=run:work/retrofit --workdir=work/retrofit --config.evaluation.split=validation

The argument is the run's folder. `retro` takes this configuration by itself wherever the
folder of a run has settings and no `--config` is given.
"""

import dataclasses
import typing
from pathlib import Path

from experiments import workdirs
from experiments.config import Experiment


def get_config(arg: str = "work/retrofit") -> Experiment:
    """Gives the experiment of a run's folder.

    Raises:
        ValueError: if the folder keeps no settings, or those of another version.
    """
    workdir = Path(workdirs.expanded(arg))
    kept = workdirs.kept_settings(workdir)
    if not kept:
        raise ValueError(f"{workdir} keeps no settings of a run (settings.json)")
    try:
        return _made(Experiment, kept)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"{workdir}/settings.json is not of this version ({error}): give --config"
        ) from error


def _made(kind: type, fields: dict):
    """An instance of a dataclass from what JSON has made of it."""
    types = typing.get_type_hints(kind)
    return kind(
        **{name: _value(types.get(name), value) for name, value in fields.items()}
    )


def _value(kind, value):
    if dataclasses.is_dataclass(kind):
        return _made(typing.cast(type, kind), value)
    return _tuples(value)


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
