"""Work units of jobs that take no time."""

from pathlib import Path

from data_pipeline.storage.files import write_json
from experiments.launching.work_units import Unit


def unit(
    out: Path,
    *jobs: list[str],
    number: int = 0,
    hosts: int = 1,
    after: str = "",
    **point: str,
) -> Unit:
    """Writes a work unit of `tests.launched` with these words."""
    folder = out / f"unit-{number:03}"
    folder.mkdir(parents=True)
    modules = [["tests.launched", *words] for words in jobs]
    made = Unit(folder, point, modules, hosts, after)
    told = {"point": point, "jobs": made.jobs, "hosts": hosts, "after": after}
    write_json(folder / "unit.json", told)
    return made
