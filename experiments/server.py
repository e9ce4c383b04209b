"""Serves a trained model over HTTP, as OpenAI's clients ask for it, with its sources and a page.

    retro serve-model [--workdir=DIR] [--database=DIR] [--config.a.b=VALUE ...] [--port=8000]

The model, its settings and its database are those of `retro generate`. Only this machine is
served unless `--host` says otherwise; then `--key_file` keeps others out and `--tls_cert` with
`--tls_key` keeps what is said secret. `--documents` lets clients add, replace and delete
documents. The page is at http://127.0.0.1:8000/. `python -m experiments.server` is the same.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from experiments import build_database, command_line, main, workdirs
from experiments.config import Experiment
from experiments.jobs import remote_database

if TYPE_CHECKING:  # flags are checked before JAX is imported
    from experiments.serving.opening import Settings

_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at.")
_PORT = flags.DEFINE_integer(
    "port", 8000, "Port to listen at.", lower_bound=1, upper_bound=65535
)
_NAME = flags.DEFINE_string(
    "name", None, "What clients call the model; by default the workdir's name."
)
_KEY_FILE = flags.DEFINE_string(
    "key_file", None, "File with the key that clients must send as a bearer token."
)
_TLS_CERT = flags.DEFINE_string("tls_cert", None, "PEM certificate, for https.")
_TLS_KEY = flags.DEFINE_string("tls_key", None, "PEM file with the certificate's key.")
_DOCUMENTS = flags.DEFINE_bool(
    "documents", False, "Let clients add, replace and delete documents."
)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 4096, "Most tokens of one text.", lower_bound=1
)
_MAX_TIME_S = flags.DEFINE_float(
    "max_time_s", 600.0, "Most time for one request.", lower_bound=0.1
)
_MAX_WAITING = flags.DEFINE_integer(
    "max_waiting",
    128,
    "Texts that may wait for others; more are refused.",
    lower_bound=1,
)
_MAX_BATCH = flags.DEFINE_integer(
    "max_batch", 8, "Texts that are written at once.", lower_bound=1
)
flags.adopt_module_key_flags(build_database)
for _name in ("token_file", "tls_ca"):
    flags.declare_key_flag(_name)


def serve(argv: list[str]) -> None:
    """Checks the flags, loads the model and serves it until it is stopped."""
    command_line.no_arguments(argv)
    if bool(_TLS_CERT.value) != bool(_TLS_KEY.value):
        raise ValueError("--tls_cert and --tls_key belong together")
    address = build_database.DATABASE.value or ""
    secrets = (main.TOKEN_FILE.value, main.TLS_CA.value)
    remote_database.check(address, *secrets)
    cfg, workdir = build_database.experiment(), build_database.workdir()
    if not (workdir / "checkpoints").is_dir():
        raise ValueError(
            f"{workdir} holds no trained model: train one first, with `retro train` "
            "(`make train`)"
        )
    with _opened(cfg, workdir, address) as (params, database):
        _run(cfg, workdir, params, database)


@contextlib.contextmanager
def _opened(cfg: Experiment, workdir: Path, address: str) -> Iterator[tuple[Any, Any]]:
    """The parameters of a run, and where passages come from, as `retro generate` has them."""
    from experiments.jobs import job as jobs

    if not cfg.evaluation.retrieval:
        tokenizer, params = jobs.trained_model(cfg, workdir)
        yield params, remote_database.NoDatabase(tokenizer)
    elif remote_database.is_address(address):
        with remote_database.told_how_to_go_on():
            service = remote_database.RemoteDatabase.open(
                address,
                token_file=_path(main.TOKEN_FILE.value),
                tls_ca=_path(main.TLS_CA.value),
            )
        with contextlib.closing(service):
            yield jobs.trained_with(cfg, workdir, service), service
    else:
        job = jobs.Job(cfg, workdir, build_database.database())
        yield job.trained(), job.database


def _run(cfg: Experiment, workdir: Path, params: Any, database: Any) -> None:
    import uvicorn

    from data_pipeline.storage.progress import say
    from experiments.jobs import reading
    from experiments.serving import app, opening

    settings = _settings(workdir)
    limits = reading.limits(cfg, workdir)
    served = opening.served(cfg, params, database, settings, limits)
    config = uvicorn.Config(
        app.application(served),
        host=_HOST.value,
        port=_PORT.value,
        log_level="warning",
        ssl_certfile=_path(_TLS_CERT.value),
        ssl_keyfile=_path(_TLS_KEY.value),
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    scheme = "https" if _TLS_CERT.value else "http"
    say(f"{served.name} is served at {scheme}://{_HOST.value}:{_PORT.value}/")
    uvicorn.Server(config).run()


def _settings(workdir: Path) -> "Settings":
    """How the model is served, by the flags."""
    from data_pipeline.service.wire import security
    from experiments.serving import guard
    from experiments.serving.opening import Settings

    key_file = _path(_KEY_FILE.value)
    return Settings(
        name=_NAME.value or workdir.name,
        key=security.read_token(Path(key_file) if key_file else None),
        hosts=guard.LOOPBACK if _HOST.value in guard.LOOPBACK else None,
        can_change=_DOCUMENTS.value,
        max_tokens=_MAX_TOKENS.value,
        max_time_s=_MAX_TIME_S.value,
        max_waiting=_MAX_WAITING.value,
        max_batch=_MAX_BATCH.value,
    )


def _path(given: str | None) -> str | None:
    return given and workdirs.expanded(given)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    command_line.start(serve)
