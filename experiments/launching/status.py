"""The table of a launch: how far each unit is, how fast it goes and how it has ended."""

import os
import socket
from collections.abc import Sequence

from experiments import workdirs
from experiments.launching import sweeps
from experiments.launching.work_units import Unit
from retro_jax.runs.metrics import duration, read_metrics

_COLUMNS = (
    "unit",
    "state",
    "job",
    "step",
    "loss",
    "tokens/s",
    "left",
    "starts",
    "settings",
)


def rows(units: Sequence[Unit]) -> list[dict]:
    """Each unit's state and newest numbers, as JSON."""
    return [_row(unit) for unit in units]


def _row(unit: Unit) -> dict:
    status, settings = unit.status(), workdirs.kept_settings(unit.folder)
    metrics = read_metrics(unit.folder / "metrics" / "metrics.jsonl")
    newest = metrics[-1] if metrics else {}
    train = settings.get("train", {})
    steps, step = train.get("steps"), newest.get("step", 0)
    rate, state = newest.get("tokens_per_s"), _state(status)
    left_s = None
    if rate and steps and state == "running":
        data = settings["data"]
        tokens_of_a_step = (
            train["batch_size"] * data["sequence_chunks"] * data["chunk_len"]
        )
        left_s = max(0, steps - step) * tokens_of_a_step / rate
    return {
        "unit": unit.name,
        "settings": sweeps.label(unit.point),
        "state": state,
        "job": status.get("job", ""),
        "step": step,
        "steps": steps,
        "loss_nats_per_token": newest.get("loss_nats_per_token"),
        "tokens_per_s": rate,
        "training_left_s": left_s,
        "starts": status.get("attempts", 0),
        "last_line": status.get("last_line", ""),
        "folder": str(unit.folder),
    }


def _state(status: dict) -> str:
    """What the unit's host wrote last, or that it is lost: gone without a word."""
    state = status.get("state", "waiting")
    if state == "running" and status.get("host") == socket.gethostname():
        try:
            os.kill(status["pid"], 0)
        except ProcessLookupError:
            return "lost"
        except PermissionError:  # another user's, so it is there
            return state
    return state


def lines(found: Sequence[dict]) -> list[str]:
    """The table for people, and below it the last line of each unit that has failed."""
    cells = [list(_COLUMNS), *(_cells(row) for row in found)]
    widths = [
        max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))
    ]
    shown = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]
    shown = [line.rstrip() for line in shown]
    for row in found:
        if row["state"] in ("failed", "killed", "lost"):
            told = row["last_line"] or "it has said nothing"
            shown.append(f"{row['unit']} {row['state']}: {told} ({row['folder']})")
    return shown


def _cells(row: dict) -> list[str]:
    loss, rate, left_s = (
        row[name] for name in ("loss_nats_per_token", "tokens_per_s", "training_left_s")
    )
    return [
        row["unit"],
        row["state"],
        row["job"],
        f"{row['step']}/{row['steps']}",
        "-" if loss is None else f"{loss:.4f}",
        "-" if rate is None else f"{rate:,.0f}",
        "-" if left_s is None else duration(left_s),
        str(row["starts"]),
        row["settings"],
    ]
