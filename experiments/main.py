"""Trains, evaluates and generates.

    retro train [--corpus=PATH] [--config=NAME] [--config.a.b=VALUE ...] [--workdir=DIR]
    retro evaluate [--workdir=DIR] [--config.a.b=VALUE ...]
    retro generate [--workdir=DIR] [--config.a.b=VALUE ...] "PROMPT"

The workdir gets `checkpoints/`, `metrics/`, `evaluation/`, `report.html`, `report.md` and
`settings.json`, from which later commands take what they are not told. The database is the
folder `--database`, or else the folder `database` in the workdir. For `generate` it may be a
retrieval service: grpc://HOST:PORT, or grpcs:// with TLS. It may lie in an object store,
gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, where `retro copy` has put it: it is copied to
`~/.cache/retro-jax`, or `$RETRO_CACHE`, and checked. `--store=s3://BUCKET/FOLDER` keeps the
run in a store, too: checkpoints, results, and from where it goes on on another machine.

A run in several processes needs a workdir and a database that all of them see. Each process
gets `--coordinator=HOST:PORT --num_processes=N --process_id=I`. On TPU pods, on GKE, under
Slurm and under Open MPI `--distributed` alone is enough.

`python -m experiments.main --job=JOB` does one part of it: `train` builds the database, trains
and evaluates. Exit statuses: 0 done; 2 a mistake or an error, told in one line; 75 stopped by
SIGTERM after the step under way, which is saved, or another process of the run was lost: the
same command goes on; 130 Ctrl-C.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from data_pipeline.storage.printing import protect_streams
from experiments import build_database, command_line, workdirs
from experiments.config import Experiment
from experiments.jobs import remote_database
from retro_jax.devices import processes

if TYPE_CHECKING:
    from experiments.jobs.stored_run import StoredRun

TOKEN_FILE = flags.DEFINE_string(
    "token_file", None, "File with the token that the service wants."
)
TLS_CA = flags.DEFINE_string(
    "tls_ca", None, "PEM certificate to check the service at grpcs:// with."
)
_JOB = flags.DEFINE_enum(
    "job", None, ["database", "train", "evaluate", "generate", "export"], "What to do."
)
_OUT = flags.DEFINE_string(
    "out", None, "Folder that --job=export makes, which needs nothing else."
)
_STORE = flags.DEFINE_string(
    "store",
    None,
    "Where in an object store, gs://BUCKET/FOLDER or s3://..., checkpoints and results are "
    "kept, too, and from where a run goes on.",
)
_ON_OTHER_RUN = flags.DEFINE_enum(
    "on_other_run",
    "refuse",
    ["refuse", "restart"],
    "If the workdir holds a run with other settings: refuse to train, or put that run aside "
    "as previous-N and train anew, also if only the database has changed.",
)
_STREAM = flags.DEFINE_bool(
    "stream",
    False,
    "Of a stored database fetch training sequences when they are read, and for training "
    "nothing that it does not read.",
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
flags.adopt_module_key_flags(build_database)
_OF_BUILDING = ("stage", "engine", "ray_address", "workers")


def main(argv: list[str]) -> None:
    """Checks the flags, then does the job, in all processes if there are several."""
    if _JOB.value == "generate" and len(argv) == 2:
        build_database.CONFIG.value.evaluation.prompt = argv.pop()
    command_line.no_arguments(argv)
    if _STREAM.value and not build_database.is_stored():  # before anything is built
        raise ValueError(
            "--stream is for a database in a store (--database=s3://... or gs://...)"
        )
    cluster = _cluster()
    if _JOB.value == "database":
        _build(cluster)
        return
    for name in _OF_BUILDING:  # the other jobs are parts of `retro train`, which builds
        if _JOB.value == "generate" and command_line.is_given(name):
            raise ValueError(f"--{name} is for building, not for generating")
    if cluster is None:
        _do_job()
        return
    with processes.JoinedProcesses(cluster):
        protect_streams()  # it has made another standard output
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


def _build(cluster: processes.Cluster | None) -> None:
    """Builds what `--job=train` reads; several processes can't build one database."""
    if build_database.is_stored():
        _database()  # copied, or refused, before anything else begins
    elif cluster is None:
        build_database.build([])
    elif not (build_database.database() / "manifest.json").exists():
        raise ValueError(
            f"{build_database.database()} is not there: several processes train on a "
            "database that one has built; build it with `retro database`"
        )


def _database() -> Path:
    """The folder of the database; with --stream, of a stored one as much as the job reads."""
    if not _STREAM.value:
        return build_database.database()
    from data_pipeline.sequences import streamed

    trains = _JOB.value in ("database", "train")
    return build_database.database(
        streamed.is_read_by_training if trains else streamed.is_no_sequence
    )


def _do_job() -> None:
    """Opens the database and does what --job says."""
    address = build_database.DATABASE.value or ""
    token_file, tls_ca = (
        flag.value and workdirs.expanded(flag.value) for flag in (TOKEN_FILE, TLS_CA)
    )
    remote_database.check(address, token_file, tls_ca)
    if _JOB.value != "generate":
        remote_database.folder_only(address, f"--job={_JOB.value}")
    cfg, workdir = build_database.experiment(), build_database.workdir()
    if _JOB.value != "train" and not (workdir / "checkpoints").is_dir():
        raise ValueError(
            f"{workdir} holds no trained model: train one first, with `retro train` "
            "(`make train`)"
        )
    # Imported late: a wrong flag should be reported at once, TensorFlow takes seconds.
    from experiments.jobs import export
    from experiments.jobs import job as jobs
    from retro_jax.devices import compilation_cache

    compilation_cache.keep_compiled()
    if _JOB.value == "generate" and not cfg.evaluation.retrieval:
        jobs.generate_without_retrieval(cfg, workdir)
        return
    if _JOB.value == "export":
        out = workdirs.expanded(_OUT.value or "")
        export.write(cfg, workdir, build_database.database(), out)
        return
    if remote_database.is_address(address):
        with remote_database.told_how_to_go_on():
            database = remote_database.RemoteDatabase.open(
                address, token_file=token_file, tls_ca=tls_ca
            )
            with contextlib.closing(database):
                jobs.generate_from_service(cfg, workdir, database)
        return
    folder = _database()
    if command_line.is_given("config.data.corpus"):
        workdirs.check_corpus(folder, cfg.data.corpus)
    if _JOB.value == "train":
        _train(cfg, workdir, folder)
        return
    job = jobs.Job(cfg, workdir, folder)
    if _JOB.value == "evaluate":
        job.evaluate()
        if stored := _stored(cfg, workdir):
            stored.save_results()
    else:
        job.generate()


def _train(cfg: Experiment, workdir: Path, database: Path) -> None:
    """Trains in the workdir; with --store, from and to the store as well."""
    from experiments.jobs import job as jobs

    restart, stored = _ON_OTHER_RUN.value == "restart", _stored(cfg, workdir)
    if stored is None:
        job = jobs.Job(cfg, workdir, database)
        with command_line.new_folder(workdir):
            job.train(restart=restart)
        return
    with command_line.new_folder(workdir), stored.kept():
        jobs.Job(cfg, workdir, database).train(restart=restart, saved=stored.save)


def _stored(cfg: Experiment, workdir: Path) -> "StoredRun | None":
    """The run's copy in the store that --store names."""
    if not _STORE.value:
        return None
    from data_pipeline.storage.object_store import ObjectStore
    from experiments.jobs.stored_run import StoredRun

    return StoredRun(
        ObjectStore(_STORE.value), workdir, keep=cfg.train.keep_checkpoints
    )


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    flags.mark_flag_as_required("job")
    command_line.start(main)
