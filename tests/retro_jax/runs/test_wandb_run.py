"""Weights & Biases: offline a run's files are there; what is missing is told in one line."""

import importlib.util
import sys

import pytest

from retro_jax.config import WatchConfig
from retro_jax.runs import metrics, wandb_run

_OFFLINE = WatchConfig(wandb="project", wandb_mode="offline")
_is_here = importlib.util.find_spec("wandb") is not None


def test_a_missing_package_is_told_before_anything_begins(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match="pip install wandb, or leave watch.wandb out"
    ):
        wandb_run.check(_OFFLINE)
    wandb_run.check(WatchConfig())  # which does not ask for it


def test_a_run_that_goes_on_keeps_its_name_there(tmp_path):
    first = wandb_run._id(tmp_path / "id")
    assert first == wandb_run._id(tmp_path / "id") and first.isalnum()
    (tmp_path / "id").write_text("../../elsewhere")
    assert wandb_run._id(tmp_path / "id").isalnum()


@pytest.mark.skipif(not _is_here, reason="wandb is not installed")
@pytest.mark.filterwarnings("ignore")  # its own, of libraries that it uses
def test_offline_its_files_hold_metrics_and_settings_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("SECRET_OF_MINE", "hush-hush")
    folder = tmp_path / "a-run" / "metrics"
    writer = metrics.MetricsWriter(
        folder, first_step=0, watch=_OFFLINE, settings={"train": {"seed": 1234}}
    )
    writer.write(3, {"bits_per_byte": 2.125})
    writer.close()
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    written = path.read_bytes()
    for told in (b"bits_per_byte", b"2.125", b"1234", b"a-run"):
        assert told in written
    for kept in (b"hush-hush", b"requirements.txt", str(sys.argv[0]).encode()):
        assert kept not in written


@pytest.mark.skipif(not _is_here, reason="wandb is not installed")
def test_a_refusal_is_one_error_that_says_what_to_do(tmp_path, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match=r"No API key configured.*wandb_mode=offline"):
        wandb_run.WandbRun(_OFFLINE, tmp_path, {})
