"""The files of a folder that are read as its text, and what there is left out by name."""

import os
import stat
from pathlib import Path

from data_pipeline.storage.files import read_json
from data_pipeline.text.documents import Skipped, printable
from data_pipeline.text.readers.source_file import OF_THE_SYSTEM

File = tuple[Path, os.stat_result]

# Kept by version control and Python, beside the folders hidden by a leading dot.
_HIDDEN = {"CVS", "_darcs", "__pycache__"}
# Other people's packages, and caches (https://bford.info/cachedir/), by name or by a file.
_PACKAGES = {"node_modules", "bower_components", "site-packages"}
_MARKS_OF_PACKAGES = {"pyvenv.cfg", "conda-meta", "CACHEDIR.TAG"}
# What this project writes: a database has a lock, or at least a manifest; a run tells what
# it runs, or ran.
_LOCK, _MANIFEST, _RUNS = ".builder", "manifest.json", ("settings.json", "run.json")
_KEYS = {
    _MANIFEST: {"format_version", "tokenizer_fingerprint"},
    "settings.json": {"command", "commit", "config"},
    "run.json": {"dataset", "model", "tokenizer"},
}


def files(folder: Path, skipped: Skipped) -> list[File]:
    """Files below a folder in the order of their paths' parts.

    A link is followed to a file of the same folder only: whoever copies a link may not know
    what it leads to, and what it leads to may be a device.
    """
    root = os.path.realpath(folder)
    found: list[File] = []
    pending: list[tuple[Path, os.stat_result | None]] = [(folder, None)]
    while pending:
        path, status = pending.pop()
        if status is None:
            pending += reversed(_entries(path, folder, root, skipped))
        else:
            found.append((path, status))
    return found


def _entries(
    place: Path, folder: Path, root: str, skipped: Skipped
) -> list[tuple[Path, os.stat_result | None]]:
    """Sorted files of one folder, and folders in it without a status."""
    found: list[tuple[Path, os.stat_result | None]] = []

    def leave_out(reason: str, path: Path) -> None:
        skipped.add(reason, printable(path.relative_to(folder)))

    def unreadable(path: Path, error: OSError) -> None:
        if error.errno in OF_THE_SYSTEM:
            raise error
        leave_out("unreadable", path)

    try:
        with os.scandir(place) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        unreadable(place, error)
        return []
    names = {entry.name for entry in entries}
    if _is_own_output(place, names):
        leave_out("output of retro-jax", place)
        return []
    if place != folder and (place.name in _PACKAGES or names & _MARKS_OF_PACKAGES):
        leave_out("packages or cache", place)
        return []
    for entry in entries:
        path = place / entry.name
        if entry.name[0] == "." or entry.name in _HIDDEN:
            continue
        try:
            is_link = entry.is_symlink()
            if is_link and not _is_below(os.path.realpath(path, strict=True), root):
                leave_out("link out of the corpus", path)
                continue
            status = entry.stat()
        except OSError as error:  # as of a link to nowhere, or in a circle
            unreadable(path, error)
            continue
        if stat.S_ISREG(status.st_mode):
            found.append((path, status))
        elif not stat.S_ISDIR(status.st_mode):
            leave_out("no regular file", path)
        elif not is_link:  # else what it leads to is read in its own place
            found.append((path, None))
    return found


def _is_below(path: str, root: str) -> bool:
    return os.path.commonpath([path, root]) == root


def _is_own_output(place: Path, names: set[str]) -> bool:
    return _LOCK in names or any(
        name in names and keys <= set(read_json(place / name) or ())
        for name, keys in _KEYS.items()
    )
