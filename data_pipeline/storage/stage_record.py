"""The record of a finished stage: `stage.json`, written last of all its files."""

from collections.abc import Mapping
from pathlib import Path

from data_pipeline.storage.confined import is_description, is_inside
from data_pipeline.storage.files import fingerprint, read_json


def read_stage(folder: Path) -> dict | None:
    """Gives the record of a finished stage; None if it is not finished.

    Raises:
        ValueError: if its `stage.json` is damaged: it holds fingerprints of all its parts.
    """
    path = folder / "stage.json"
    if not path.exists():
        return None
    made = read_json(path)
    if made is None or not _agrees_with_itself(made):
        raise ValueError(f"{path} is damaged: restore it, or build again")
    return made


def _agrees_with_itself(made: Mapping) -> bool:
    of_stage = {name: made.get(name) for name in ("settings", "inputs", "shards")}
    contents = fingerprint(made.get("files"))
    same = (made.get("fingerprint"), made.get("contents")) == (
        fingerprint(of_stage),
        contents,
    )
    return same and _is_confined(made)


def _is_confined(made: Mapping) -> bool:
    """Whether shards and files have names that stay in the stage's folder."""
    shards, files = made.get("shards"), made.get("files")
    return (
        isinstance(shards, list)
        and isinstance(files, Mapping)
        and all(map(is_inside, [*shards, *files]))
        and all(map(is_description, files.values()))
    )


def contents_if_finished(
    folder: Path,
    settings: Mapping,
    inputs: Mapping[str, str],
    shards: Mapping[str, int],
) -> str | None:
    """The contents of a stage that is whole and up to date; None if it is not."""
    finished = read_json(folder / "stage.json")
    wanted = fingerprint(identity(settings, inputs, shards))
    is_right = (
        finished is not None
        and _agrees_with_itself(finished)
        and finished["fingerprint"] == wanted
        and _all_there(folder, finished)
    )
    return finished["contents"] if finished and is_right else None


def was_begun_otherwise(
    folder: Path,
    settings: Mapping,
    inputs: Mapping[str, str],
    shards: Mapping[str, int],
) -> bool:
    """Whether a stage holds shards of other settings or inputs, which would be removed."""
    wanted = fingerprint(identity(settings, inputs, shards))
    building = read_json(folder / "building.json")
    return building is not None and building.get("fingerprint") != wanted


def changed_settings(folder: Path, settings: Mapping) -> list[str]:
    """Names of the settings that a finished stage was made with otherwise."""
    made = read_json(folder / "stage.json")
    if made is None or not _agrees_with_itself(made):
        return []
    old = made["settings"]
    names = sorted(old.keys() | settings.keys())
    return [n for n in names if fingerprint(old.get(n)) != fingerprint(settings.get(n))]


def identity(settings: Mapping, inputs: Mapping[str, str], shards: Mapping) -> dict:
    """Gives what a stage's fingerprint is of: its settings, inputs and shards' names."""
    return {
        "settings": dict(settings),
        "inputs": dict(inputs),
        "shards": list(shards),
    }


def _all_there(folder: Path, finished: dict) -> bool:
    """Whether every file still has its size; a missing or cut file is made again."""
    return all(
        (folder / shard / name).is_file()
        and (folder / shard / name).stat().st_size == entry["size_bytes"]
        for shard, files in finished["files"].items()
        for name, entry in files.items()
    )
