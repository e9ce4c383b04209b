"""The folder of a saved index: its files, and `meta.json`, which describes them."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from data_pipeline.storage.confined import is_inside
from data_pipeline.storage.files import new_folder

META = "meta.json"
FORMAT_VERSION = 1


def save_folder(
    folder: str | os.PathLike[str],
    write: Callable[[pathlib.Path], None],
    facts: dict[str, Any],
) -> None:
    """Writes an index folder under a temporary name, then renames it.

    An index that was there is replaced; between the two renames there is none.
    """
    with new_folder(pathlib.Path(folder), replaces=True) as temporary:
        write(temporary)
        sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        meta = {"format_version": FORMAT_VERSION, **facts, "file_sizes_bytes": sizes}
        text = json.dumps(meta, indent=2, sort_keys=True) + "\n"
        (temporary / META).write_text(text, encoding="utf-8")


def check_files(folder: pathlib.Path, meta: dict[str, Any]) -> None:
    """Checks version and files of an index folder against its meta.json.

    Raises:
      ValueError: naming the file that is missing, truncated or not of this index.
      OSError: if one can't be opened; libraries that read them say no more than "failed".
    """
    if meta.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder / META} has format version {meta.get('format_version')!r}, this "
            f"code reads {FORMAT_VERSION}: build the index again"
        )
    sizes = meta.get("file_sizes_bytes")
    if not isinstance(sizes, dict) or not all(map(is_inside, sizes)):
        raise ValueError(f"{folder / META} is damaged: build the index again")
    extra = sorted({path.name for path in folder.iterdir()} - set(sizes) - {META})
    if extra:
        raise ValueError(f"{folder / extra[0]} does not belong to this index")
    for name, size_bytes in sorted(sizes.items()):
        path = folder / name
        found_bytes = path.stat().st_size if path.exists() else None
        if found_bytes != size_bytes:
            raise ValueError(
                f"{path} has {found_bytes} bytes, {size_bytes} were written: "
                "build the index again"
            )
        with path.open("rb"):
            pass
