"""Builds a database: text in, neighbours and training sequences out.

    python -m experiments.build_database --config=FILE[:ARG] --database=DIR [--stage=...]

Every stage is skipped if it is up to date, and goes on where it was broken off.
"""

import os

from absl import flags
from ml_collections import config_flags

from experiments import commands

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's settings.")
_DATABASE = flags.DEFINE_string("database", None, "Folder of the database.")
_STAGE = flags.DEFINE_string("stage", "dataset", "Build up to this stage.")


def build(argv: list[str]) -> None:
    commands.no_arguments(argv)
    from data_pipeline.build import Build  # after the flags were checked

    Build(_CONFIG.value.data, commands.folder(_DATABASE.value)).run(_STAGE.value)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # accelerators are for training
    flags.mark_flags_as_required(["config", "database"])
    commands.start(build)
