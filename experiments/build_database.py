"""Builds a database: text in, neighbours and training sequences out.

    retro database [--corpus=PATH] [--config=NAME] [--config.a.b=VALUE ...] [--workdir=DIR]

A build skips each stage that is up to date and goes on where it was broken off, with either
engine. It embeds and searches exactly on the accelerators that JAX finds; JAX_PLATFORMS=cpu
leaves them to others. On a Ray cluster all nodes need this code with its packages and, at
the same path, the folder of the database. `python -m experiments.build_database` is the same.
"""

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from data_pipeline.storage import locks, object_store
from data_pipeline.storage.extras import install_command
from data_pipeline.storage.progress import say
from experiments import command_line, workdirs
from experiments.config import Experiment
from experiments.jobs import remote_database

if TYPE_CHECKING:
    from data_pipeline.build.engine import Engine

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The settings: tiny, retro, ablations, run or a FILE, perhaps with :ARG.",
)
CORPUS = flags.DEFINE_string(
    "corpus",
    None,
    "Folder, file, tfds:NAME, hf:NAME, factbook or python; short for --config.data.corpus.",
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run; by default one of the corpus's own below work/.",
)
DATABASE = flags.DEFINE_string(
    "database", None, "Folder of the database; by default WORKDIR/database."
)
_STAGE = flags.DEFINE_string("stage", "dataset", "The last stage to build.")
_ENGINE = flags.DEFINE_enum(
    "engine",
    "local",
    ["local", "ray"],
    "What makes the shards: processes of this machine, or Ray.",
)
_RAY_ADDRESS = flags.DEFINE_string(
    "ray_address", "", "A running Ray cluster; without it Ray starts on this machine."
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Most shards to make at once; 0 = as many as there is room for."
)


def experiment() -> Experiment:
    """The settings, in which every path means the same wherever the next command starts."""
    return command_line.with_whole_paths(CONFIG.value)


def workdir() -> Path:
    """The run's folder, as the flags say; it need not be there yet."""
    if not WORKDIR.value:
        raise ValueError("the name of a folder is empty")
    return Path(workdirs.expanded(WORKDIR.value)).absolute()


def is_stored() -> bool:
    """Whether the flags say that the database lies in an object store."""
    return object_store.is_url(DATABASE.value or "")


def database(wanted: Callable[[str], bool] = lambda file: True) -> Path:
    """The folder of the database, as the flags say; a checked copy of a stored one.

    Args:
        wanted: of a stored one, whether a file is copied.
    """
    if is_stored():
        return object_store.fetched(str(DATABASE.value), wanted)
    if DATABASE.value is None:
        return workdir() / "database"
    if not DATABASE.value:
        raise ValueError("the name of a folder is empty")
    return Path(workdirs.expanded(DATABASE.value)).absolute()


def build(argv: list[str]) -> None:
    """Checks the flags, then builds."""
    command_line.no_arguments(argv)
    remote_database.folder_only(DATABASE.value or "", "building")
    if is_stored():
        raise ValueError(
            f"{DATABASE.value} is a stored database, which is only read: build it in a "
            "folder and store it with `retro copy`"
        )
    cfg = experiment()
    workdirs.check_corpus(database(), cfg.data.corpus)
    from data_pipeline.build.pipeline import STAGES, Build  # TensorFlow takes seconds

    with _nobody_trains(), command_line.new_folder(database()) as folder:
        Build(cfg.data, folder, _engine(folder)).run(_STAGE.value)
        if _STAGE.value == STAGES[-1]:
            name = shlex.quote(os.path.relpath(folder))
            say(
                f'the database is there: retro search --database={name} "your question"'
            )
    if DATABASE.value is None:
        workdirs.record_settings(cfg, workdir(), parts=["data"])


@contextlib.contextmanager
def _nobody_trains() -> Iterator[None]:
    """Keeps the run of this folder from being trained on a database that is being built."""
    if DATABASE.value is None and (workdir() / "run.json").exists():
        with locks.locked(workdir() / ".training", "training in"):
            yield
    else:
        yield


def _engine(folder: Path) -> "Engine":
    if _ENGINE.value == "ray":
        try:
            from data_pipeline.build.ray_engine import RayEngine
        except ImportError as error:
            raise ValueError(
                f"--engine=ray needs Ray ({error}): {install_command('ray')}"
            ) from error
        return RayEngine(_RAY_ADDRESS.value, folder, workers=_WORKERS.value)
    if _RAY_ADDRESS.value:
        raise ValueError("--ray_address is for --engine=ray")
    from data_pipeline.build.local_engine import LocalEngine

    return LocalEngine(workers=_WORKERS.value)


if __name__ == "__main__":
    command_line.start(build)
