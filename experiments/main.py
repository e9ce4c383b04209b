"""Trains, evaluates and generates.

    python -m experiments.main --config=FILE[:ARG] --workdir=DIR \
        --job=train|evaluate|generate [--config.a.b=value]

The workdir gets `checkpoints/`, `metrics/`, `evaluation/`, `report.html` and `report.md`;
the database is `--database`, or the folder `database` in the workdir.

Exit statuses: 0 done; 2 a mistake or an error, said in one line; 75 stopped by SIGTERM
after the step under way, which is saved: the same command goes on from it; 130 Ctrl-C.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments import commands
from experiments.config import Experiment

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's settings.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_DATABASE = flags.DEFINE_string(
    "database", None, "Folder; WORKDIR/database if not given."
)
_JOB = flags.DEFINE_enum("job", None, ["train", "evaluate", "generate"], "What to do.")
_ON_OTHER_RUN = flags.DEFINE_enum(
    "on_other_run",
    "refuse",
    ["refuse", "restart"],
    "If the workdir holds a run with other settings or data: refuse to go on, or put it "
    "aside as previous-N and start afresh.",
)


def main(argv: list[str]) -> None:
    """Checks the flags, then does the job."""
    commands.no_arguments(argv)
    cfg: Experiment = _CONFIG.value
    workdir = commands.folder(_WORKDIR.value)
    database = Path(_DATABASE.value).absolute() if _DATABASE.value else None
    # Imported late: a wrong flag should be reported at once, TensorFlow takes seconds.
    from experiments import jobs

    job = jobs.Job(cfg, workdir, database or workdir / "database")
    if _JOB.value != "generate":  # the settings that the report speaks of
        _record_settings(cfg, workdir)
    if _JOB.value == "train":
        job.train(restart=_ON_OTHER_RUN.value == "restart")
    elif _JOB.value == "evaluate":
        job.evaluate()
    else:
        job.generate()


def _record_settings(cfg: Experiment, workdir: Path) -> None:
    """What was run, for whoever reads the results later."""
    from data_pipeline.engine import write_json

    write_json(
        workdir / "settings.json",
        {
            "config": dataclasses.asdict(cfg),
            "commit": _commit(),
            "command": " ".join(sys.argv),
        },
    )


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return described.stdout.strip() or "unknown"


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    flags.mark_flags_as_required(["config", "workdir", "job"])
    commands.start(main)
