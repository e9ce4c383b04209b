"""The table of a launch: how far each unit is, how fast it goes and how it has ended."""

import math
import os
import socket
from collections.abc import Sequence

from experiments import workdirs
from experiments.launching import sweeps
from experiments.launching.work_units import Unit
from retro_jax.runs import goodput
from retro_jax.runs.metrics import duration, read_metrics

_LARGEST = 1e30  # of a number that is taken seriously
BAD = ("failed", "killed", "lost")  # states of units that have come to nothing yet
_COLUMNS = (
    "unit",
    "state",
    "job",
    "step",
    "loss",
    "tokens/s",
    "left",
    "useful",
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
    train, data = (_part(settings, name) for name in ("train", "data"))
    steps, step = number(train.get("steps")), number(newest.get("step")) or 0
    rate, state = number(newest.get("tokens_per_s")), _state(status)
    left_s = None
    sizes = [
        number(train.get("batch_size")),
        number(data.get("sequence_chunks")),
        number(data.get("chunk_len")),
    ]
    known = [float(size) for size in sizes if size is not None]
    if rate and steps and state == "running" and len(known) == len(sizes):
        left_s = max(0, steps - step) * math.prod(known) / rate
    return {
        "unit": unit.name,
        "settings": sweeps.label(unit.point),
        "state": state,
        "job": str(status.get("job", "")),
        "step": step,
        "steps": steps,
        "loss_nats_per_token": number(newest.get("loss_nats_per_token")),
        "tokens_per_s": rate,
        "training_left_s": left_s,
        "goodput": goodput.summary(unit.folder),
        "starts": number(status.get("attempts")) or 0,
        "last_line": str(status.get("last_line") or ""),
        "folder": str(unit.folder),
    }


def number(value: object) -> float | None:
    """The value if it is a finite number: what units have written may be anything."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return value if abs(value) <= _LARGEST else None  # nor is NaN


def _part(settings: dict, name: str) -> dict:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _state(status: dict) -> str:
    """What the unit's host wrote last, or that it is lost: gone without a word."""
    state, pid = str(status.get("state", "waiting")), number(status.get("pid"))
    here = status.get("host") == socket.gethostname()
    if state == "running" and here and pid and pid > 0:
        try:
            os.kill(int(pid), 0)
        except (ProcessLookupError, OverflowError):
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
    if spent := goodput.total([row["goodput"] for row in found if row["goodput"]]):
        shown.append(f"all units: {goodput.line(spent)}")
    for row in found:
        if row["state"] in BAD:
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
        f"{row['step']}/{row['steps'] or '-'}",
        "-" if loss is None else f"{loss:.4f}",
        "-" if rate is None else f"{rate:,.0f}",
        "-" if left_s is None else duration(left_s),
        f"{row['goodput']['useful_share']:.0%}" if row["goodput"] else "-",
        str(row["starts"]),
        row["settings"],
    ]
