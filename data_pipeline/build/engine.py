"""Runs a stage's shards, and knows what is done already.

A stage is a pure function of its settings, its inputs and a shard's name, which writes the
files of that shard into a folder that it is given:

    <stage>/<shard>/...files...      appears by one rename, with `shard.json` inside
    <stage>/building.json            what the finished shards of a broken-off run belong to
    <stage>/stage.json               written last: fingerprint, every file's size and sha256

So a stage that was killed goes on with the shards that are missing, a finished one is
recognised in a moment, and a changed setting makes the stage afresh. A stage's inputs
enter by their contents: if a changed setting upstream makes the same files as before,
nothing further down is made again.

An engine makes the shards that are missing, in any order and anywhere, even twice: the
first rename wins. `local_engine.py` makes them on this machine, `ray_engine.py` on a
cluster; what one began the other goes on with.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from data_pipeline.storage import costs
from data_pipeline.storage.costs import SearchSpeed, ShardCost
from data_pipeline.storage.files import (
    describe_files,
    fingerprint,
    new_folder,
    read_json,
    remove_temporaries,
    write_json,
)
from data_pipeline.storage.progress import Progress, say
from data_pipeline.storage.stage_record import contents_if_finished, identity

# Makes the files of a shard, given its name and an empty folder. Reports on the way how
# many rows are done, lines for the person who watches, and of an index how fast it is.
Work = Callable[[str, Path], Iterator[int | str | SearchSpeed]]
# What the work of a shard keeps busy: one core, all cores, or an accelerator if there is one.
Resource = Literal["core", "cores", "accelerator"]
# What an engine hands on: what the work reported, and the cost of each shard.
Report = int | str | ShardCost


@runtime_checkable
class Engine(Protocol):
    """An engine makes shards, on this machine or on others."""

    def run(
        self,
        work: Work,
        folder: Path,
        shards: Sequence[str],
        resource: Resource,
        on_report: Callable[[Report], None],
    ) -> None:
        """Makes all of a stage's `shards` by `make_shard`, in any order.

        Raises:
            What `work` raises, for the first shard that fails; those that were made stay.
        """
        ...


def run_stage(
    folder: Path,
    settings: Mapping,
    inputs: Mapping[str, str],
    shards: Mapping[str, int],
    work: Work,
    engine: Engine,
    *,
    resource: Resource = "core",
    unit: str = "shards",
) -> str:
    """Makes the shards of a stage that are missing.

    Args:
        folder: the stage's own; its name is the stage's.
        settings: JSON; what `work` depends on besides its inputs, what stands for its own
            code included (`stage_code.py`).
        inputs: contents of the stages that it reads, as this function returned them.
        shards: names of the shards, in order, and how many rows each will report.
        work: makes a shard; for an engine of several processes it must be picklable.
        unit: what the rows are, for progress.
    Returns:
        The fingerprint of the stage's contents.
    """
    done = contents_if_finished(folder, settings, inputs, shards)
    if done is not None:
        say(f"{folder.name}: up to date")
        return done
    of_stage = identity(settings, inputs, shards)
    wanted = fingerprint(of_stage)
    _clear_other(folder, wanted)
    missing = [s for s in shards if not (folder / s / "shard.json").exists()]
    if len(missing) == len(shards):
        costs.begin(folder.parent, folder.name)
    total = sum(shards[shard] for shard in missing)
    with Progress(folder.name, total, unit) as progress:

        def on_report(report: Report) -> None:
            if isinstance(report, ShardCost):
                costs.append(folder.parent, report)
            elif isinstance(report, str):
                say(report)
            else:
                progress.advance(report)

        engine.run(work, folder, missing, resource, on_report)
    remove_temporaries(folder)  # of workers that were lost
    files = {shard: read_json(folder / shard / "shard.json") for shard in shards}
    contents = fingerprint(files)
    write_json(
        folder / "stage.json",
        {"fingerprint": wanted, "contents": contents, **of_stage, "files": files},
    )
    return contents


def make_shard(work: Work, folder: Path, shard: str) -> Iterator[Report]:
    """Makes one shard if it is not there, passes on what `work` reports, then its cost.

    Safe to be done twice at once: each attempt has a folder of its own, and where another
    was first its shard stays.
    """
    if (folder / shard / "shard.json").exists():
        return
    stopwatch = costs.Stopwatch()
    rows, queries_per_s = 0, 0.0
    try:
        with new_folder(folder / shard) as attempt:
            for report in work(shard, attempt):
                if isinstance(report, SearchSpeed):
                    queries_per_s = report.queries_per_s
                    continue
                rows += report if isinstance(report, int) else 0
                yield report
            files = describe_files(attempt)
            write_json(attempt / "shard.json", files)
            size_bytes = sum(entry["size_bytes"] for entry in files.values())
            cost = stopwatch.cost(folder.name, shard, rows, size_bytes, queries_per_s)
    except OSError:
        # Another attempt was first, whose shard stays: this one has no cost.
        if not (folder / shard / "shard.json").exists():
            raise
        return
    yield cost


def _clear_other(folder: Path, wanted: str) -> None:
    """Leaves finished shards of a broken-off run of this same stage, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    building = read_json(folder / "building.json")
    same = building is not None and building.get("fingerprint") == wanted
    # First, for no file is sure from here on.
    (folder / "stage.json").unlink(missing_ok=True)
    for entry in folder.iterdir():
        attempt = entry.name.startswith(".tmp-")  # perhaps whole, but not renamed
        if entry.is_dir() and (not same or attempt or not _shard_is_whole(entry)):
            shutil.rmtree(entry)
        elif entry.is_file() and not same:
            entry.unlink()
    write_json(folder / "building.json", {"fingerprint": wanted})


def _shard_is_whole(shard: Path) -> bool:
    files = read_json(shard / "shard.json")
    return files is not None and all(
        (shard / name).is_file()
        and (shard / name).stat().st_size == entry["size_bytes"]
        for name, entry in files.items()
    )
