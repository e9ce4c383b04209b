"""Files and folders that appear whole or not at all, and what describes them."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path


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
    except (FileNotFoundError, ValueError):  # no JSON, or not even text
        return None


def write_sealed(path: Path, value: Mapping) -> None:
    """Writes a JSON file with a checksum of its own, as `write_json`."""
    write_json(path, {**value, "checksum": fingerprint(value)})


def read_sealed(path: Path) -> dict | None:
    """What a JSON file with a checksum holds; None if it is not there or damaged."""
    value = read_json(path)
    if not isinstance(value, dict):
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
    """A folder that appears whole, with the checksums of its files in `shard.json`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write(temporary)
    write_json(temporary / "shard.json", describe_files(temporary))
    os.replace(temporary, folder)
