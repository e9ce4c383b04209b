"""Versions of a database: what was added to and deleted from it since it was built.

    versions/current.json     the number of the version in force; its rename is the switch
    versions/000001.json      what a version consists of, never changed once written
    versions/000001.npy       its deleted documents: rows, ascending
    deltas/000001/            documents that were added: a shard of every stage in one folder
    compacted/000003/         shards of the build, written again without deleted text

Version 0 is the build itself and has no files. Everything but `current.json` is written
under a name that no version knows yet, so whoever is killed leaves the old version or the
new one; what no version knows is cleared away before the next change. `current.json` is
there before the first version is: without it versions are an error, not the build.

Letters here: D deleted documents.
"""

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from data_pipeline.storage import locks
from data_pipeline.storage.confined import check_links
from data_pipeline.storage.files import (
    fingerprint,
    read_json,
    read_sealed,
    remove_temporaries,
    sha256_of,
    write_sealed,
)
from data_pipeline.storage.mapped_arrays import open_array
from data_pipeline.storage.stage_record import changed_settings, was_begun_otherwise
from data_pipeline.storage.system_errors import explained

# What a version's record may name, in the database's folder.
_DELTA = r"\d{6}(-merged)?"
_SHARD = r"\w+-\d{5}"
_BUILT = rf"(chunks|embeddings)/{_SHARD}|(index|lexical)/\d{{5}}|documents/all/{_SHARD}\.parquet"
_STAND_IN = rf"compacted/\d{{6}}/{_SHARD}(/documents\.parquet|/lexical)?"
_OWN = rf"compacted/\d{{6}}/{_SHARD}|deltas/{_DELTA}"
HELD_OUT = ("validation", "test")
_BASE_STAGES = ("documents", "tokenizer", "chunks", "embeddings")


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """One state of a database.

    Attributes:
        base: fingerprint of the build's chunks and vectors, which rows and ids count on.
        deltas: folders of what was added, in order.
        deleted_D: rows of documents that are no longer there, ascending; of the training
            split, the only one that is searched.
        held_out: such rows of the other splits, by split.
        replaced: paths in the database's folder -> paths of what stands in for them.
        contents: of each of its own shards the fingerprint of what `shard.json` holds.
    """

    number: int
    base: str
    deltas: tuple[str, ...] = ()
    deleted_D: Int[np.ndarray, " D"] = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.int64)
    )
    held_out: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    replaced: Mapping[str, str] = dataclasses.field(default_factory=dict)
    contents: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Changes with everything in it; what names a delta is never used again."""
        deleted = self.deleted_D.tolist()
        parts = [self.number, self.base, self.deltas, deleted, dict(self.replaced)]
        # A version that only deletes has no shards of its own.
        contents = [dict(self.contents)] if self.contents else []
        held_out = [dict(self.held_out)] if any(self.held_out.values()) else []
        return fingerprint([*parts, *contents, *held_out])

    @property
    def own_shards(self) -> list[str]:
        """Paths of the shards that it has and the build has not."""
        stand_ins = {"/".join(Path(p).parts[:3]) for p in self.replaced.values()}
        return sorted(stand_ins) + [f"deltas/{name}" for name in self.deltas]

    def deleted(self, split: str) -> Int[np.ndarray, " D"]:
        """Rows of a split's documents that are no longer there, ascending."""
        if split == "train":
            return self.deleted_D
        return np.array(self.held_out.get(split, ()), np.int64)

    def is_deleted(
        self, rows: Int[np.ndarray, "..."], split: str = "train"
    ) -> Bool[np.ndarray, "..."]:
        """Which of these documents are no longer there, by row."""
        deleted_D = self.deleted(split)
        if not len(deleted_D):
            return np.zeros(np.shape(rows), bool)
        places = np.searchsorted(deleted_D, rows)
        return deleted_D[np.minimum(places, len(deleted_D) - 1)] == rows


def base_of(manifest: Mapping) -> str:
    """What the rows and ids of a database count on, as a fingerprint."""
    return fingerprint({stage: manifest["contents"][stage] for stage in _BASE_STAGES})


def name_of(number: int) -> str:
    """The name of a version's files, as 000001."""
    return f"{number:06d}"


def numbers(folder: Path) -> list[int]:
    """Versions that can be opened; 0, the build, unless it was compacted since."""
    found, oldest = _written(folder), folder / "versions" / "oldest.json"
    first = _number(oldest) if oldest.exists() else 0
    if first is None:
        raise ValueError(
            f"{oldest} is damaged: name the oldest version that was left by compacting "
            f'in it (of {found}), as {{"version": 3}}'
        )
    return [n for n in [0, *found] if n >= first]


def _written(folder: Path) -> list[int]:
    """Numbers that version files have."""
    return sorted(
        int(name[:6])
        for name in _names_in(folder / "versions")
        if re.fullmatch(r"\d{6}\.json", name, re.ASCII)
    )


def _names_in(folder: Path) -> list[str]:
    """Names of what is in a folder; none if there is no such folder.

    Not by `glob`, to which a folder that may not be read is an empty one.
    """
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _number(path: Path) -> int | None:
    """The version that a file names; None if the file is missing or damaged.

    A user may have written it by hand, as messages about a damaged one say: it then holds
    {"version": 3} alone, without a checksum.
    """
    named = read_json(path)
    if named is None or named.keys() != {"version"}:
        named = read_sealed(path) or {}
    number = named.get("version")
    return number if type(number) is int else None


def in_force(folder: Path) -> int:
    """Number of the version in force.

    Raises:
        ValueError: if what names it is damaged or lost: the build may hold what was
            deleted.
    """
    written = _written(folder)  # first: `current.json` is there before they are
    path = folder / "versions" / "current.json"
    if not path.exists() and not written:
        return 0
    number = _number(path)
    if number is None:
        problem = "damaged" if path.exists() else "missing"
        raise ValueError(
            f"{path} is {problem}: restore it, or name a version that is there "
            f'({numbers(folder)}) in it, as {{"version": 3}}'
        )
    return number


def _check_there(folder: Path, number: int) -> None:
    there = numbers(folder)
    if number not in there:
        path = folder / "versions" / f"{name_of(number)}.json"
        raise ValueError(
            f"{folder} has no version {number} ({path} is missing, or compacting gave it "
            f"up); there are {there}"
        )


def read(folder: Path, manifest: Mapping, number: int | None = None) -> Version:
    """A version of the database in a folder, the one in force if no number is given.

    Raises:
        ValueError: if there is no such version, it is damaged or counts on another build.
    """
    if number is None:
        number = in_force(folder)
    _check_there(folder, number)
    base = base_of(manifest)
    if number == 0:
        return Version(number=0, base=base)
    facts = _facts(folder, number)
    deleted = folder / "versions" / f"{name_of(number)}.npy"
    if not deleted.is_file() or sha256_of(deleted) != facts.get("deleted_sha256"):
        raise ValueError(f"{deleted} is damaged: restore it, or open another version")
    if facts.get("base") != base:
        raise ValueError(
            f"{folder} was built again with other text since it was updated: move its "
            "versions/ and deltas/ away, or build into another folder"
        )
    return Version(
        number=number,
        base=base,
        deltas=tuple(facts["deltas"]),
        deleted_D=_rows(deleted),
        held_out=facts.get("held_out", {}),
        replaced=facts["replaced"],
        contents=facts["contents"],
    )


def _rows(path: Path) -> np.ndarray:
    rows_D = open_array(path)
    if rows_D.ndim != 1 or rows_D.dtype != np.int64 or (np.diff(rows_D) < 1).any():
        raise ValueError(f"{path} is damaged: restore it, or open another version")
    return rows_D


def _facts(folder: Path, number: int) -> dict:
    """What a version's file holds; of the build, which has none, what it would."""
    if number == 0:
        return {"deltas": [], "replaced": {}}
    path = folder / "versions" / f"{name_of(number)}.json"
    facts = read_sealed(path)
    if facts is None or not _is_record(facts):
        raise ValueError(
            f"{path} is damaged: restore it, open another version, or remove it to give "
            "this one up"
        )
    return facts


def _is_record(facts: Mapping) -> bool:
    """Whether all that a version's record names lies where versions have their files."""
    deltas, replaced, contents = map(facts.get, ("deltas", "replaced", "contents"))
    held_out = facts.get("held_out", {})  # which older ones have not
    return (
        isinstance(deltas, list)
        and isinstance(replaced, dict)
        and isinstance(contents, dict)
        and isinstance(held_out, dict)
        and held_out.keys() <= set(HELD_OUT)
        and all(isinstance(rows, list) for rows in held_out.values())
        and all(type(row) is int for rows in held_out.values() for row in rows)
        and _all_match(_DELTA, deltas)
        and _all_match(_BUILT, replaced)
        and _all_match(_STAND_IN, replaced.values())
        and _all_match(_OWN, contents)
    )


def _all_match(form: str, names: Iterable[object]) -> bool:
    return all(isinstance(n, str) and re.fullmatch(form, n, re.ASCII) for n in names)


def is_compacted(folder: Path) -> bool:
    """Whether a build's own shards may have been given up by compacting."""
    return (folder / "versions" / "oldest.json").exists()


def check_base(
    stage: Path, settings: Mapping, inputs: Mapping[str, str], shards: Mapping[str, int]
) -> None:
    """Raises ValueError if versions stand on a stage that would be made otherwise."""
    if (
        stage.name in _BASE_STAGES
        and _written(stage.parent)
        and was_begun_otherwise(stage, settings, inputs, shards)
    ):
        is_code = changed_settings(stage, settings) == ["code"]
        raise ValueError(
            f"{stage.parent} was updated since it was built, and its versions stand on "
            f"{stage.name} that {'this code' if is_code else 'these settings'} would make "
            "anew: build into another folder, or move its versions/ and deltas/ away"
        )


def next_number(folder: Path) -> int:
    """The number of the next version: one that no file of any version has."""
    return max(map(_number_of, _names_in(folder / "versions")), default=0) + 1


def publish(folder: Path, version: Version) -> None:
    """Writes a version's files and puts it in force. Its own shards are there already.

    The caller is the sole writer.
    """
    path = folder / "versions" / f"{name_of(version.number)}.json"
    path.parent.mkdir(exist_ok=True)
    if not (path.parent / "current.json").exists():  # the first version
        write_sealed(path.parent / "current.json", {"version": 0})
    deleted = path.with_suffix(".npy")
    np.save(deleted, version.deleted_D, allow_pickle=False)
    facts = {
        "base": version.base,
        "deltas": list(version.deltas),
        "deleted_sha256": sha256_of(deleted),
        "held_out": dict(version.held_out),
        "replaced": dict(version.replaced),
        "contents": _contents(folder, version),
    }
    write_sealed(path, facts)
    _switch(folder, version.number)


def _contents(folder: Path, version: Version) -> dict[str, str]:
    """Fingerprints of own shards (`Version.contents`); known ones are taken over."""
    return {
        path: version.contents.get(path)
        or fingerprint(read_json(folder / path / "shard.json"))
        for path in version.own_shards
    }


def put_in_force(folder: Path, number: int) -> None:
    """Puts a version that is there in force, also in place of a lost or damaged one.

    Raises:
        ValueError: if it is not there, or another process is changing the database.
    """
    check_links(folder)
    with explained(folder), locks.locked(folder / ".writer", "changing"):
        _check_there(folder, number)
        _switch(folder, number)


def _switch(folder: Path, number: int) -> None:
    """One rename. The caller is the sole writer."""
    write_sealed(folder / "versions" / "current.json", {"version": number})


def sole_builder(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Keeps other builds and changes out meanwhile; ValueError if one is under way.

    Raises ValueError too if a link leads out of the folder, in which things are removed.
    """
    check_links(folder)
    return locks.locked(folder / ".builder", "building or changing")


@contextlib.contextmanager
def sole_writer(folder: Path, *, in_build: bool = False) -> Iterator[None]:
    """Keeps others from changing the database meanwhile; clears what a kill has left.

    Args:
        in_build: by the build itself. Other changes keep builds out, and are kept out by
            one: it may be making anew what they would stand on.
    Raises:
        ValueError: if another process is changing or building it, or what says what is to
            be kept is damaged.
    """
    builds = contextlib.nullcontext() if in_build else sole_builder(folder)
    with explained(folder), locks.locked(folder / ".writer", "changing"), builds:
        _check_there(folder, in_force(folder))
        clear_unknown(folder)
        try:
            yield
        except Exception:  # what was begun is of no version: room for what comes next
            with contextlib.suppress(OSError, ValueError):
                clear_unknown(folder)
            raise


def clear_unknown(folder: Path) -> None:
    """Removes deltas and compacted shards that no version consists of.

    The caller is the sole writer, and has looked at the folder's links.
    """
    deltas: set[str] = set()
    compacted: set[str] = set()
    there = numbers(folder)
    for number in there:
        facts = _facts(folder, number)
        deltas |= set(facts["deltas"])
        stand_ins = facts["replaced"].values()
        compacted |= {Path(path).parts[1] for path in stand_ins}
    for parent, known in (("deltas", deltas), ("compacted", compacted)):
        for name in _names_in(folder / parent):
            if name not in known:
                _remove(folder / parent / name)
    remove_temporaries(folder / "versions")
    for name in _names_in(folder / "versions"):
        if _number_of(name) not in {0, *there}:
            _remove(folder / "versions" / name)
    # What is replaced in the oldest is replaced in all that came after.
    for path in _facts(folder, min(there))["replaced"]:
        _remove(folder / path)


def _number_of(name: str) -> int:
    """The version that a file in `versions/` is of; 0 for those that are of none."""
    return int(name[:6]) if re.match(r"\d{6}", name, re.ASCII) else 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def forget_before(folder: Path, number: int) -> None:
    """Gives up all versions before one, so that what only they know can be cleared."""
    (folder / "versions").mkdir(exist_ok=True)  # nothing was ever changed
    write_sealed(folder / "versions" / "oldest.json", {"version": number})
    clear_unknown(folder)
