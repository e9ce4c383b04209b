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

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from data_pipeline.storage import costs
from data_pipeline.storage.costs import Cost, Speed
from data_pipeline.storage.files import (
    describe_files,
    fingerprint,
    read_json,
    write_json,
)
from data_pipeline.storage.progress import Progress, say
from data_pipeline.storage.stage_record import contents_if_finished, identity

# Makes the files of a shard, given its name and an empty folder. Tells on the way how many
# rows are done, lines for the person who watches, and of an index how fast it is.
Work = Callable[[str, Path], Iterator[int | str | Speed]]
# What the work of a shard keeps busy: one core, all cores, or an accelerator if there is one.
Uses = Literal["core", "cores", "accelerator"]


@runtime_checkable
class Engine(Protocol):
    """Makes shards."""

    def run(
        self,
        work: Work,
        folder: Path,
        shards: Sequence[str],
        uses: Uses,
        tell: Callable[[int | str | Cost], None],
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
    uses: Uses = "core",
    unit: str = "shards",
) -> str:
    """Makes the shards of a stage that are missing.

    Args:
        folder: the stage's own; its name is the stage's.
        settings: JSON; what `work` depends on besides its inputs, a version of its own code
            included.
        inputs: contents of the stages that it reads, as this function returned them.
        shards: names of the shards, in order, and how many rows each will tell of.
        work: makes one; for an engine of several processes it must be picklable.
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

        def tell(told: int | str | Cost) -> None:
            if isinstance(told, Cost):
                costs.append(folder.parent, told)
            elif isinstance(told, str):
                say(told)
            else:
                progress.advance(told)

        engine.run(work, folder, missing, uses, tell)
    for attempt in folder.glob(".tmp-*"):  # of workers that were lost
        shutil.rmtree(attempt)
    files = {shard: read_json(folder / shard / "shard.json") for shard in shards}
    contents = fingerprint(files)
    write_json(
        folder / "stage.json",
        {"fingerprint": wanted, "contents": contents, **of_stage, "files": files},
    )
    return contents


def make_shard(work: Work, folder: Path, shard: str) -> Iterator[int | str | Cost]:
    """Makes one shard if it is not there, passes on what `work` tells, then its cost.

    Safe to be done twice at once: each attempt has a folder of its own, and where another
    was first its shard stays.
    """
    if (folder / shard / "shard.json").exists():
        return
    temporary = folder / f".tmp-{shard}-{uuid.uuid4().hex[:12]}"
    temporary.mkdir()
    meter = costs.Meter()
    rows, queries_per_s = 0, 0.0
    for told in work(shard, temporary):
        if isinstance(told, Speed):
            queries_per_s = told.queries_per_s
            continue
        rows += told if isinstance(told, int) else 0
        yield told
    files = describe_files(temporary)
    write_json(temporary / "shard.json", files)
    size_bytes = sum(entry["size_bytes"] for entry in files.values())
    cost = meter.read(folder.name, shard, rows, size_bytes, queries_per_s)
    try:
        os.replace(temporary, folder / shard)
    except OSError:
        if not (folder / shard / "shard.json").exists():
            raise
        shutil.rmtree(temporary)
        return
    yield cost


def _clear_other(folder: Path, wanted: str) -> None:
    """Leaves finished shards of a broken-off run of this same stage, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    building = read_json(folder / "building.json")
    same = building is not None and building.get("fingerprint") == wanted
    (folder / "stage.json").unlink(
        missing_ok=True
    )  # first: no file is sure from here on
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
