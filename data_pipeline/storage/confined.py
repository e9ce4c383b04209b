"""Guards for a folder that may come from anybody: nothing in it leads out of it.

Checksums are against accident: whoever changes a file on purpose changes its checksum too.
What a record names is therefore looked at before anything is read or removed by it.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)


def is_inside(path: object) -> bool:
    """Whether a record's path is of plain names alone: not absolute, no '..'."""
    return isinstance(path, str) and all(map(_NAME.fullmatch, path.split("/")))


def is_description(files: object) -> bool:
    """Whether a value has the form that `files.describe_files` gives."""
    return isinstance(files, Mapping) and all(
        is_inside(name)
        and isinstance(entry, Mapping)
        and type(entry.get("size_bytes")) is int
        and type(entry.get("sha256")) is str
        for name, entry in files.items()
    )


def check_links(folder: Path) -> None:
    """Looks at every entry below a folder that is there.

    Raises:
        ValueError: naming a link that leads out, or what is neither file nor folder.
        OSError: if a folder can't be listed.
    """
    root = os.path.realpath(folder)
    waiting = [root]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                waiting += [
                    entry.path for entry in entries if _is_folder_to_enter(entry, root)
                ]
        except FileNotFoundError:  # of a change under way
            continue


def _is_folder_to_enter(entry: os.DirEntry, root: str) -> bool:
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if os.path.commonpath([root, target]) != root:
            raise ValueError(
                f"{entry.path} is a link out of {root} (to {target}): put what it leads "
                "to in its place, if you trust it"
            )
        return False
    if entry.is_dir(follow_symlinks=False):
        return True
    if not entry.is_file(follow_symlinks=False):
        raise ValueError(f"{entry.path} is neither a file nor a folder: remove it")
    return False
