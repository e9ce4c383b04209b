"""Work units: a folder each, in which one run is trained and evaluated.

    unit-000/unit.json      what it is: point of the sweep, settings, jobs, commit, environment
    unit-000/settings.json  its settings, from where the run takes them
    unit-000/status.json    how far it is; written whole, by the first host alone
    unit-000/host-0.log     what its processes have printed

The folder is the run's own: checkpoints, metrics, evaluation and report lie in it too.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.storage.files import read_json, write_json
from experiments import workdirs
from experiments.launching import sweeps

_UNIT, _STATUS = "unit.json", "status.json"
_PACKAGES = (
    "jax",
    "jaxlib",
    "numpy",
    "tensorflow-cpu",
    "tensorflow",
    "orbax-checkpoint",
)
# Of the environment only what changes how a run computes: the rest may hold secrets.
_TOLD = ("JAX_", "XLA_", "LIBTPU_", "TPU_", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE")


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """A work unit as its folder describes it."""

    folder: Path
    point: sweeps.Point  # settings in which units of a sweep differ
    jobs: list[list[str]]  # modules with flags, one after the other, on every host
    hosts: int
    after: str = ""  # the unit beside it from whose model it starts

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.name

    def status(self) -> dict:
        """How far it is, as its host has written; empty before its start."""
        return read_json(self.folder / _STATUS) or {}

    @property
    def is_finished(self) -> bool:
        """Whether all of its jobs are done."""
        return self.status().get("state") == "finished"

    @property
    def has_start(self) -> bool:
        """Whether the unit from whose model it starts, if there is one, is finished."""
        started = read_json(self.folder.parent / self.after / _STATUS) or {}
        return not self.after or started.get("state") == "finished"

    def record(self, **changes: object) -> None:
        """Changes its status, which others read whole or not at all."""
        write_json(self.folder / _STATUS, {**self.status(), **changes})


def write(
    planned: Sequence[sweeps.Planned],
    out: Path,
    databases: Sequence[Path],
    hosts: int,
    words: str,
) -> list[Unit]:
    """Makes a folder for each unit that has none; gives all of them.

    Args:
        databases: of each unit.
        hosts: processes of each.
        words: as which they were launched.
    Raises:
        ValueError: before anything is written, if a folder is there with another unit.
    """
    units, described = [], []
    names = [f"unit-{number:03}" for number in range(len(planned))]
    for name, plan, database in zip(names, planned, databases, strict=True):
        folder, after = out / name, ""
        if plan.after is not None:
            after = names[plan.after]
            plan.experiment.init_from = str(out / after)
        run = [f"--workdir={folder}", f"--database={database}"]
        jobs = [
            ["experiments.main", f"--job={job}", *run] for job in ("train", "evaluate")
        ]
        settings = json.loads(json.dumps(dataclasses.asdict(plan.experiment)))
        told = {"point": plan.point, "settings": settings, "jobs": jobs, "hosts": hosts}
        told["after"] = after
        _check_same(folder, told)
        units.append(Unit(folder, plan.point, jobs, hosts, after))
        described.append(told)
    for unit, plan, told in zip(units, planned, described, strict=True):
        unit.folder.mkdir(parents=True, exist_ok=True)
        if not workdirs.has_settings(unit.folder):
            workdirs.record_settings(plan.experiment, unit.folder)
        made = {"launched_as": words, "commit": workdirs.commit()}
        if not (unit.folder / _UNIT).exists():
            write_json(
                unit.folder / _UNIT, told | made | {"environment": _environment()}
            )
    return units


def _check_same(folder: Path, told: dict) -> None:
    """Raises ValueError if the folder holds another unit, naming what differs first."""
    known = read_json(folder / _UNIT)
    if known is None:
        return
    for part in ("settings", "jobs", "hosts"):
        before, now = known.get(part), told[part]
        if before == now:
            continue
        differing = part
        if part == "settings":
            pairs = zip(_flat(before), _flat(now), strict=False)
            there, here = next(((a, b) for a, b in pairs if a != b), ("", ""))
            differing = f"{there} there and {here} here"
        raise ValueError(
            f"{folder} holds another work unit ({differing}): launch into another --out, or "
            "with the same settings, --database and --hosts"
        )


def _flat(settings: object, prefix: str = "") -> list[str]:
    """Nested settings, a line each."""
    if not isinstance(settings, dict):
        return [f"{prefix[1:]}={settings}"]
    return [
        line
        for name in sorted(settings)
        for line in _flat(settings[name], f"{prefix}.{name}")
    ]


def read(out: Path) -> list[Unit]:
    """The units of a folder, by number.

    Raises:
        ValueError: if there are none.
    """
    found = [
        opened for path in sorted(out.glob("unit-*")) if (opened := read_unit(path))
    ]
    if not found:
        raise ValueError(f"{out} holds no work units: it is the --out of a launch")
    return found


def read_unit(folder: Path) -> Unit | None:
    """The unit of a folder; None if it holds none, or one that no launcher wrote."""
    known = read_json(folder / _UNIT) or {}
    point, jobs, hosts = (known.get(name) for name in ("point", "jobs", "hosts"))
    if not (isinstance(point, dict) and isinstance(jobs, list) and type(hosts) is int):
        return None
    words = [
        known.get("after", ""),
        *point.values(),
        *(word for job in jobs for word in (job if isinstance(job, list) else [0])),
    ]
    if not all(isinstance(word, str) for word in words):
        return None
    return Unit(folder, point, jobs, hosts, words[0])


def _environment() -> dict:
    """What the launching machine computes with."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    told = {name: value for name, value in os.environ.items() if name.startswith(_TOLD)}
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": versions,
        "variables": told,
    }


def _processor() -> str:
    """The name of the processor; what Linux calls it, where there is such a file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [line for line in text.splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()
