"""Weights & Biases, for those who keep their runs there: metrics and settings, nothing else."""

import importlib.util
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retro_jax.config import WatchConfig

_ID_FILE = "wandb-id"  # so that a run that goes on is the same run there


def check(cfg: WatchConfig) -> None:
    """Raises ImportError, with what to do, if the package is asked for and not there."""
    if cfg.wandb and importlib.util.find_spec("wandb") is None:
        raise ImportError(
            "watch.wandb needs the package wandb, which is not installed: pip install "
            "wandb, or leave watch.wandb out"
        )


class WandbRun:
    """One run of a project. Offline its files lie in `wandb/`, for `wandb sync`."""

    def __init__(self, cfg: WatchConfig, folder: Path, settings: Mapping):
        """Begins the run, or goes on with it.

        Args:
            folder: the run's folder of metrics.
            settings: what is shown of it besides its metrics, as JSON.
        Raises:
            ValueError: if Weights & Biases refuses, or does not answer.
        """
        import wandb  # seconds

        logging.getLogger("wandb").setLevel(logging.ERROR)
        mode: Any = cfg.wandb_mode  # one of WANDB_MODES
        try:
            self._run = wandb.init(
                project=cfg.wandb,
                mode=mode,
                id=_id(folder / _ID_FILE),
                resume="allow" if cfg.wandb_mode == "online" else None,
                name=folder.absolute().parent.name,
                dir=folder,
                config=dict(settings),
                # The rest of what it would send is nobody's business but the user's.
                settings=wandb.Settings(
                    console="off",
                    disable_code=True,
                    disable_git=True,
                    disable_job_creation=True,
                    silent=True,
                    x_disable_machine_info=True,
                    x_disable_meta=True,
                    x_disable_stats=True,
                    x_save_requirements=False,
                ),
            )
        except wandb.Error as error:
            raise ValueError(
                f"Weights & Biases can't be used: {error} (wandb login, "
                "--config.watch.wandb_mode=offline, or leave watch.wandb out)"
            ) from error
        self._teardown = wandb.teardown
        # Steps are a number like any other: after a restart some come a second time.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the values of a step."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Ends the run there; it can go on later."""
        self._run.finish()
        self._teardown()  # its own process writes what it has left


def _id(path: Path) -> str:
    """The name of a folder's run, which is drawn when it is first asked for."""
    known = path.read_text().strip() if path.exists() else ""
    if not known.isalnum():
        known = secrets.token_hex(8)
        path.write_text(known)
    return known
