"""Files and folders that appear whole or not at all, and what describes them."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from data_pipeline.storage.system_errors import explained


def fingerprint(value) -> str:
    """16 hexadecimal digits for anything that is JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file that is there whole or not at all, in place of an older one.

    Raises:
        OSError: if the system can't write it; names it and says what to do.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = _temporary(path)
    try:
        with explained(path), temporary.open("xb") as file:
            file.write(data)
            file.flush()
            # Else a power cut may leave the new name with nothing in it.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(folder: Path, *, replaces: bool = False) -> Iterator[Path]:
    """Gives an empty folder to fill, which takes its name when the block ends.

    Args:
        replaces: an older folder goes; between two renames there is none.
    Raises:
        OSError: if the folder is there and is not to be replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(folder)
    temporary.mkdir()
    try:
        yield temporary
        if replaces and folder.exists():
            old = _temporary(folder)
            os.replace(folder, old)
            os.replace(temporary, folder)
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _temporary(path: Path) -> Path:
    """A name beside a path that no other process makes, on no other machine either."""
    return path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:12]}")


def remove_temporaries(folder: Path) -> None:
    """Removes what killed processes left in a folder; nobody may be writing there."""
    for path in folder.glob(".tmp-*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_json(path: Path, value) -> None:
    """Writes a JSON file, as `write_file` does."""
    write_file(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict | None:
    """The object that a JSON file holds; None if it is not there or holds none."""
    try:
        value = json.loads(path.read_text())
    # No JSON, not even text, or nested so deep that no writer of ours made it.
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def write_sealed(path: Path, value: Mapping) -> None:
    """Writes a JSON file with a checksum of its own, as `write_json`."""
    write_json(path, {**value, "checksum": fingerprint(value)})


def read_sealed(path: Path) -> dict | None:
    """What a JSON file with a checksum holds; None if it is not there or damaged."""
    value = read_json(path)
    if value is None:
        return None
    checksum = value.pop("checksum", None)
    return value if checksum == fingerprint(value) else None


def link(source: Path, target: Path) -> None:
    """Gives a file a second name, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:  # across devices, or a file system without links
        shutil.copyfile(source, target)


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


def make_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Makes a folder that appears whole, with its files' checksums in `shard.json`.

    It is for a sole writer: what a kill has left of the same folder goes first.
    """
    for left in folder.parent.glob(f".tmp-{folder.name}-*"):
        shutil.rmtree(left)
    with new_folder(folder) as temporary:
        write(temporary)
        write_json(temporary / "shard.json", describe_files(temporary))
