"""Work units of jobs that take no time."""

from pathlib import Path

from data_pipeline.storage.files import write_json
from experiments.launching.work_units import Unit


def unit(
    out: Path, *jobs: list[str], number: int = 0, hosts: int = 1, **point: str
) -> Unit:
    """Writes a work unit of `tests.launched` with these words."""
    folder = out / f"unit-{number:03}"
    folder.mkdir(parents=True)
    made = Unit(folder, point, [["tests.launched", *words] for words in jobs], hosts)
    told = {"point": point, "jobs": made.jobs, "hosts": hosts}
    write_json(folder / "unit.json", told)
    return made
