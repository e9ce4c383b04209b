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
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from data_pipeline.progress import say


def fingerprint(value) -> str:
    """16 hexadecimal digits for anything that is JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, value) -> None:
    """Writes a JSON file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict | None:
    """What a JSON file holds; None if it is not there or not JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def run_stage(
    folder: Path,
    settings: Mapping,
    inputs: Mapping[str, str],
    shards: Iterable[str],
    make_shard: Callable[[str, Path], None],
) -> str:
    """Makes the shards of a stage that are missing.

    Args:
        folder: the stage's own; its name is the stage's.
        settings: JSON; what `make_shard` depends on besides its inputs, a version of its
            own code included.
        inputs: contents of the stages that it reads, as this function returned them.
        shards: names of the shards, in order.
        make_shard: called with a shard's name and an empty folder for its files.
    Returns:
        The fingerprint of the stage's contents.
    """
    shards = list(shards)
    identity = {"settings": dict(settings), "inputs": dict(inputs), "shards": shards}
    wanted = fingerprint(identity)
    finished = read_json(folder / "stage.json")
    if finished and finished["fingerprint"] == wanted and _all_there(folder, finished):
        say(f"{folder.name}: up to date")
        return finished["contents"]
    _clear_other(folder, wanted)
    for shard in shards:
        if not (folder / shard / "shard.json").exists():
            _make_one(folder, shard, make_shard)
    files = {shard: read_json(folder / shard / "shard.json") for shard in shards}
    contents = fingerprint(files)
    write_json(
        folder / "stage.json",
        {"fingerprint": wanted, "contents": contents, **identity, "files": files},
    )
    return contents


def _all_there(folder: Path, finished: dict) -> bool:
    """Whether every file still has its size; a missing or cut file is made again."""
    return all(
        (folder / shard / name).is_file()
        and (folder / shard / name).stat().st_size == entry["size_bytes"]
        for shard, files in finished["files"].items()
        for name, entry in files.items()
    )


def _clear_other(folder: Path, wanted: str) -> None:
    """Leaves finished shards of a broken-off run of this same stage, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    building = read_json(folder / "building.json")
    same = building is not None and building["fingerprint"] == wanted
    (folder / "stage.json").unlink(
        missing_ok=True
    )  # first: no file is sure from here on
    for entry in folder.iterdir():
        if entry.is_dir() and (not same or not _shard_is_whole(entry)):
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


def _make_one(folder: Path, shard: str, make_shard: Callable[[str, Path], None]):
    temporary = folder / f".tmp-{shard}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    make_shard(shard, temporary)
    write_json(temporary / "shard.json", describe_files(temporary))
    os.replace(temporary, folder / shard)


def describe_files(folder: Path) -> dict[str, dict]:
    """Size and checksum of every file below a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {
            "size_bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in files
    }


def sha256_of(path: Path) -> str:
    """Checksum of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
