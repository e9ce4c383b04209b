r"""Builds a database: text in, neighbours and training sequences out.

    python -m experiments.build_database --config=FILE[:ARG] --database=DIR \
        [--stage=NAME] [--workers=N] [--engine=ray [--ray_address=HOST:PORT]]

A build skips each stage that is up to date and goes on where it was broken off, with either
engine. It embeds and searches exactly on the accelerators that JAX finds; JAX_PLATFORMS=cpu
leaves them to others. On a Ray cluster all nodes need this code with its packages and, at
the same path, the folder of the database.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from experiments import command_line
from experiments.jobs import remote_database

if TYPE_CHECKING:
    from data_pipeline.build.engine import Engine

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment's settings: FILE, or FILE:ARG for a variant."
)
_DATABASE = flags.DEFINE_string("database", None, "Folder of the database.")
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


def build(argv: list[str]) -> None:
    """Checks the flags, then builds."""
    command_line.no_arguments(argv)
    from data_pipeline.build.pipeline import Build  # TensorFlow takes seconds

    remote_database.folder_only(_DATABASE.value or "", "building")
    folder = command_line.folder(_DATABASE.value)
    Build(_CONFIG.value.data, folder, _engine(folder)).run(_STAGE.value)


def _engine(folder: Path) -> "Engine":
    if _ENGINE.value == "ray":
        try:
            from data_pipeline.build.ray_engine import RayEngine
        except ImportError as error:
            raise ValueError(
                f"--engine=ray needs Ray: make install-ray ({error})"
            ) from error
        return RayEngine(_RAY_ADDRESS.value, folder, workers=_WORKERS.value)
    if _RAY_ADDRESS.value:
        raise ValueError("--ray_address is for --engine=ray")
    from data_pipeline.build.local_engine import LocalEngine

    return LocalEngine(workers=_WORKERS.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "database"])
    command_line.start(build)
