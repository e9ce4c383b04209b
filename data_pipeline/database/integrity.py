"""Checks of a database's files against the sizes and checksums they were written with.

Opening checks what is cheap: that every file has its size, and the checksums of what
searches give back (text, tokens, tokenizer) up to a gigabyte; an index is checked when it is
loaded. `verify.py` checks everything.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from data_pipeline.database import manifest as manifests
from data_pipeline.database.versions import Version
from data_pipeline.storage.confined import is_description
from data_pipeline.storage.files import fingerprint, read_json, sha256_of
from data_pipeline.storage.stage_record import read_stage
from data_pipeline.storage.streamed_files import StreamedFiles

_READ_STAGES = ("documents", "tokenizer", "chunks", "lexical")
_VERSIONS = ("deltas", "compacted")
_CHECKED_BYTES = 1_000_000_000  # about a second of checksums


def check_size(path: Path, entry: dict) -> None:
    """Raises ValueError naming a file that is missing or has not the size it had."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: restore it, or build again")
    size_bytes = path.stat().st_size
    if size_bytes != entry["size_bytes"]:
        raise ValueError(
            f"{path} has {size_bytes} bytes instead of {entry['size_bytes']}: restore it, "
            "or build again"
        )


def check_sum(path: Path, entry: dict) -> None:
    """Raises ValueError naming a file whose checksum is not what it was."""
    if sha256_of(path) != entry["sha256"]:
        raise ValueError(
            f"{path} is damaged (its checksum differs): restore it, or build again"
        )


def described(folder: Path, version: Version) -> Iterator[tuple[Path, dict]]:
    """Every file of a version with its size and checksum.

    Raises:
        ValueError: naming a shard whose description is not there or is another's.
    """
    manifest = manifests.read(folder)
    for stage in manifest["contents"]:
        made = read_stage(folder / stage) or {"files": {}}
        for shard, files in made["files"].items():
            for name, entry in files.items():
                path = f"{stage}/{shard}"
                if f"{path}/{name}" in version.replaced or path in version.replaced:
                    continue
                yield folder / path / name, entry
    for shard in version.own_shards:
        for name, entry in _description(folder / shard, version, shard).items():
            yield folder / shard / name, entry


def _description(shard: Path, version: Version, name: str) -> dict[str, dict]:
    """What the `shard.json` holds that a version was published with."""
    path = shard / "shard.json"
    described = read_json(path)
    if described is None or not is_description(described):
        raise ValueError(f"{path} is missing or damaged: restore it, or {shard}")
    # A whole shard of another database has right checksums too, but not these.
    if version.contents.get(name) != fingerprint(described):
        raise ValueError(
            f"{path} is damaged or another database's, not what version "
            f"{version.number} was made with: restore {shard}"
        )
    return described


def check_quickly(
    folder: Path, version: Version, *, since: Version | None = None
) -> None:
    """What opening checks; raises ValueError naming the file that is not as written.

    What a copy has left in its store is not looked at.

    With `since`, a version that was opened before, of the files that it had only the sizes.
    """
    if since is not None and since.base != version.base:
        raise ValueError(
            f"{folder} was built again with other text since it was opened: open it anew"
        )
    known = set() if since is None else _own_folders(since)
    read_bytes, read, streamed = 0, [], StreamedFiles(folder)
    for path, entry in described(folder, version):
        if path in streamed:
            continue
        check_size(path, entry)
        stage, part = path.relative_to(folder).parts[:2]
        is_known = (stage, part) in known or (since and stage in _READ_STAGES)
        if stage in (*_READ_STAGES, *_VERSIONS) and not is_known:
            read.append((path, entry))
            read_bytes += entry["size_bytes"]
    if read_bytes <= _CHECKED_BYTES:
        for path, entry in read:
            check_sum(path, entry)


def _own_folders(version: Version) -> set[tuple[str, ...]]:
    """Folders, by stage and name, that a version has and the build has not."""
    return {tuple(path.split("/")[:2]) for path in version.own_shards}


def check_below(shards: Collection[Path], folder: Path, version: Version) -> None:
    """Checks all files of some shards; raises ValueError naming one that is not whole."""
    wanted = set(shards)
    for path, entry in described(folder, version) if wanted else ():
        if not wanted.isdisjoint(path.parents):
            check_size(path, entry)
            check_sum(path, entry)
