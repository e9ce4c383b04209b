"""Where the numbers of a launch come from: command, commit, machine, data and time."""

import datetime
import shlex
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.storage.files import read_json
from experiments.launching.work_units import Unit

_DATABASE = "--database="
# Of a database's manifest: what it is, not where it lies.
_OF_DATABASE = (
    "fingerprint",
    "corpus",
    "chunks",
    "chunk_len",
    "embedder",
    "vocab_size",
)


def of_launch(units: Sequence[Unit]) -> dict:
    """What a reader needs to know of a launch and to repeat it, as JSON without places."""
    told = [read_json(unit.folder / "unit.json") or {} for unit in units]
    statuses = [unit.status() for unit in units]
    ends_s = [status["ended_s"] for status in statuses if status.get("ended_s")]
    date = None
    if ends_s:
        date = datetime.datetime.fromtimestamp(max(ends_s), datetime.UTC).date()
    first = told[0]
    sweep = "--sweep" if any(unit.point for unit in units) else ""
    launched_as = _without_places(first.get("launched_as", ""))
    words = ("retro launch", launched_as, sweep, "--out=DIR")
    return {
        "command": " ".join(filter(None, words)),
        "commit": first.get("commit"),
        "date": date and date.isoformat(),
        "machine": first.get("environment"),
        "units": len(units),
        "finished": sum(unit.is_finished for unit in units),
        "unit_seconds": sum(map(_seconds, statuses)),
        "databases": [_described(path) for path in _databases(units)],
    }


def _without_places(flags: str) -> str:
    """The flags, of whose paths on one machine the last part is left."""
    told = []
    for flag in shlex.split(flags):
        name, equals, value = flag.partition("=")
        is_place = value.startswith(("/", "~"))
        told.append(f"{name}{equals}{Path(value).name if is_place else value}")
    return " ".join(map(_quoted, told))


def _quoted(word: str) -> str:
    """A word as a shell takes it, in double quotes where single ones stand in it."""
    if "'" in word and not set('"$`\\!') & set(word):
        return f'"{word}"'
    return shlex.quote(word)


def _seconds(status: dict) -> float:
    """How long a unit's last start ran."""
    return max((status.get("ended_s") or 0) - (status.get("began_s") or 0), 0)


def _databases(units: Sequence[Unit]) -> list[Path]:
    flags = [flag for unit in units for job in unit.jobs for flag in job]
    found = [flag for flag in flags if flag.startswith(_DATABASE)]
    return [Path(flag.removeprefix(_DATABASE)) for flag in dict.fromkeys(found)]


def _described(database: Path) -> dict:
    manifest = read_json(database / "manifest.json") or {}
    found = {name: manifest[name] for name in _OF_DATABASE if name in manifest}
    documents = manifest.get("documents", {})
    splits = {
        split: documents[split]["documents"]
        for split in manifest.get("chunks", {})
        if split in documents
    }
    stage = read_json(database / "dataset" / "stage.json") or {}
    return found | {"documents": splits, "dataset": stage.get("contents")}
