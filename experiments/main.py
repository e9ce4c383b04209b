r"""Trains, evaluates and generates.

    python -m experiments.main --config=FILE[:ARG] --workdir=DIR \
        --job=train|evaluate|generate [--config.a.b=value]

The workdir gets `checkpoints/`, `metrics/`, `evaluation/`, `report.html` and `report.md`.
The database is the folder `--database`, or else the folder `database` in the workdir. For
`--job=generate` it may be a retrieval service: grpc://HOST:PORT, or grpcs:// with TLS.

A run in several processes needs a workdir and a database that all of them see. Each process
gets `--coordinator=HOST:PORT --num_processes=N --process_id=I`. On TPU pods, on GKE, under
Slurm and under Open MPI `--distributed` alone is enough.

Exit statuses: 0 done; 2 a mistake or an error, told in one line; 75 stopped by SIGTERM after
the step under way, which is saved, so that the same command goes on from it; 130 Ctrl-C.
"""

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments import command_line
from experiments.config import Experiment
from experiments.jobs import remote_database
from retro_jax.devices import processes

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment's settings: FILE, or FILE:ARG for a variant."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_DATABASE = flags.DEFINE_string(
    "database",
    None,
    "Folder of the database, by default WORKDIR/database; for generate also a service.",
)
_TOKEN_FILE = flags.DEFINE_string(
    "token_file", None, "File with the token that the service wants."
)
_TLS_CA = flags.DEFINE_string(
    "tls_ca", None, "PEM certificate to check the service at grpcs:// with."
)
_JOB = flags.DEFINE_enum("job", None, ["train", "evaluate", "generate"], "What to do.")
_ON_OTHER_RUN = flags.DEFINE_enum(
    "on_other_run",
    "refuse",
    ["refuse", "restart"],
    "If the workdir holds a run with other settings or data: refuse to go on, or put it "
    "aside as previous-N and start afresh.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for a run in several processes."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "The number of processes.")
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "The number of this process, from 0."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Ask the cluster (TPU, GKE, Slurm, Open MPI) for these three."
)
_HEARTBEAT_S = flags.DEFINE_integer(
    "heartbeat_s",
    60,
    "A process that is silent for so long is lost, and the others end.",
)
_JOIN_TIMEOUT_S = flags.DEFINE_integer(
    "join_timeout_s", 300, "How long to wait for all processes at the start."
)


def main(argv: list[str]) -> None:
    """Checks the flags, then does the job, in all processes if there are several."""
    command_line.no_arguments(argv)
    cluster = _cluster()
    if cluster is None:
        _do_job()
        return
    with processes.JoinedProcesses(cluster):
        status = command_line.run(lambda _: _do_job(), argv)
        if status:
            sys.exit(status)


def _cluster() -> processes.Cluster | None:
    """How to find the other processes; None if no flag speaks of any."""
    by_hand = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if not _DISTRIBUTED.value and by_hand == (None, None, None):
        return None
    cluster = processes.Cluster(
        coordinator=by_hand[0],
        num_processes=by_hand[1],
        process_id=by_hand[2],
        automatic=_DISTRIBUTED.value,
        heartbeat_s=_HEARTBEAT_S.value,
        join_timeout_s=_JOIN_TIMEOUT_S.value,
    )
    cluster.validate()
    return cluster


def _do_job() -> None:
    """Opens the database and does what --job says."""
    cfg: Experiment = _CONFIG.value
    address = _DATABASE.value or ""
    remote_database.check(address, _TOKEN_FILE.value, _TLS_CA.value)
    if _JOB.value != "generate":
        remote_database.folder_only(address, f"--job={_JOB.value}")
    workdir = command_line.folder(_WORKDIR.value)
    # Imported late: a wrong flag should be reported at once, TensorFlow takes seconds.
    from experiments.jobs import job as jobs

    if _JOB.value == "generate" and not cfg.evaluation.retrieval:
        jobs.generate_without_retrieval(cfg, workdir)
        return
    if remote_database.is_address(address):
        with remote_database.told_how_to_go_on():
            database = remote_database.RemoteDatabase.open(
                address, token_file=_TOKEN_FILE.value, tls_ca=_TLS_CA.value
            )
            with contextlib.closing(database):
                jobs.generate_from_service(cfg, workdir, database)
        return
    folder = Path(address).absolute() if address else workdir / "database"
    job = jobs.Job(cfg, workdir, folder)
    if _JOB.value != "generate" and processes.is_first():
        _record_settings(cfg, workdir)
    if _JOB.value == "train":
        job.train(restart=_ON_OTHER_RUN.value == "restart")
    elif _JOB.value == "evaluate":
        job.evaluate()
    else:
        job.generate()


def _record_settings(cfg: Experiment, workdir: Path) -> None:
    """Writes what is run to `settings.json`, which the report reads."""
    from data_pipeline.storage.files import write_json

    write_json(
        workdir / "settings.json",
        {
            "config": dataclasses.asdict(cfg),
            "commit": _commit(),
            "command": " ".join(sys.argv),
        },
    )


def _commit() -> str:
    """The commit that runs, "-dirty" if files were changed; "unknown" without git."""
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
    command_line.start(main)
