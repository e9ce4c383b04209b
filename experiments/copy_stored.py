"""Copies a folder to an object store, or a stored folder back: whole and checked.

    retro copy work/retrofit/database s3://BUCKET/database
    retro copy s3://BUCKET/run/step-00001000 work/run

What is stored ends with `complete.json`, which has the size and the sha256 of every file; what
comes back is compared with it. `python -m experiments.copy_stored` is the same.
"""

import argparse
import sys
from pathlib import Path

from data_pipeline.storage import object_store
from data_pipeline.storage.printing import protect_streams
from data_pipeline.storage.progress import say
from experiments import command_line, workdirs


def main(argv: list[str]) -> None:
    """Copies what the words of the command line name.

    Raises:
        ValueError: if not one of the two is a store, the folder to copy is missing or empty,
            the other is there already, or what is stored is damaged.
        StoreError: if the store can't be read or written.
    """
    parser = argparse.ArgumentParser(
        prog="retro copy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="FROM", help="a folder, or gs:// or s3://")
    parser.add_argument("target", metavar="TO", help="gs:// or s3://, or a new folder")
    args = parser.parse_args(argv)
    to_store = object_store.is_url(args.target)
    if to_store == object_store.is_url(args.source):
        raise ValueError(
            "retro copy FROM TO: one of them is a folder, the other gs://BUCKET/FOLDER or "
            "s3://BUCKET/FOLDER"
        )
    if to_store:
        _store(Path(workdirs.expanded(args.source)).absolute(), args.target)
    else:
        _fetch(args.source, Path(workdirs.expanded(args.target)).absolute())


def _store(folder: Path, url: str) -> None:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    files = object_store.files_below(folder)
    if not files:
        raise ValueError(f"{folder} has no files to copy")
    object_store.ObjectStore(url).put("", files)
    say(f"{folder} is stored whole: {len(files)} files in {url}")


def _fetch(url: str, folder: Path) -> None:
    if folder.exists():
        raise ValueError(f"{folder} is there already: remove it, or name a new folder")
    object_store.ObjectStore(url).get("", folder)
    say(f"{url} is copied and checked: {folder}")


if __name__ == "__main__":
    protect_streams()
    command_line.end_at_interrupt()
    sys.exit(command_line.run(main, sys.argv[1:]))
