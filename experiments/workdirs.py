"""The folders of runs: which one is a corpus's own, and the settings that are kept in it.

Whatever stands for a place comes through here, so that `~`, `..` and links mean the same
in every command. Nothing large is imported before it is needed.
"""

import argparse
import dataclasses
import hashlib
import os
import re
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.config import INSTALLED_CORPORA
from data_pipeline.storage import object_store

if TYPE_CHECKING:
    from experiments.config import Experiment

DEFAULT_CONFIG = "retrofit"
_WORK = Path("work")
_NAMED_SOURCES = ("tfds", "hf")
_SETTINGS = "settings.json"


def expanded(path: str) -> str:
    """The path with `~` replaced by the home folder; an unknown user's stays as it is."""
    return os.path.expanduser(path)


def corpus_identity(corpus: str) -> str:
    """The one name of a corpus: the whole path behind links, or `hf:NAME` and its like."""
    path = expanded(corpus)
    is_named = corpus.partition(":")[0] in _NAMED_SOURCES and ":" in corpus
    if corpus in INSTALLED_CORPORA or (is_named and not os.path.exists(path)):
        return corpus
    return os.path.realpath(path)


def default_workdir(corpus: str, config: str = "") -> Path:
    """The folder of a corpus's runs: its last name, for people, and a hash of its identity.

    Without a corpus it is the folder of a configuration, which has a corpus of its own.
    """
    identity = corpus_identity(corpus)
    if not identity:
        stem, _, argument = (config or DEFAULT_CONFIG).partition(":")
        name = f"{Path(stem).stem}-{argument}" if argument else Path(stem).stem
        return _WORK / _plain(name)
    digits = hashlib.sha256(os.fsencode(identity)).hexdigest()[:8]
    return _WORK / f"{_plain(os.path.basename(identity))[:40] or 'corpus'}-{digits}"


def _plain(name: str) -> str:
    """A name of letters, digits and `_.-` alone."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name a database, of which each has a default."""
    parser.add_argument(
        "--database", metavar="DIR", help="the database's folder [WORKDIR/database]"
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="the run's folder [the corpus's below work/]"
    )
    parser.add_argument(
        "--corpus", default="", help="what it was built from [the configuration's own]"
    )


def database_of(args: argparse.Namespace) -> str:
    """The folder of the database that such flags name, or the address of a service.

    Raises:
        ValueError: if there is no such corpus, or the database was built from another one.
    """
    if args.database is None:
        workdir = args.workdir or default_workdir(args.corpus)
        identity = corpus_identity(args.corpus)
        # What was built from a corpus that is gone, or has moved, is still there.
        if os.path.isabs(identity) and not any(
            map(os.path.exists, (identity, workdir))
        ):
            raise ValueError(f"there is no corpus {identity}")
        args.database = os.path.join(workdir, "database")
    if object_store.is_url(args.database):
        return str(object_store.fetched(args.database))
    if "://" in args.database:
        return args.database
    folder = Path(expanded(args.database)).absolute()
    if args.corpus:
        check_corpus(folder, args.corpus)
    return str(folder)


def check_corpus(database: Path, corpus: str) -> None:
    """Raises ValueError if there is a database that was built from another corpus.

    A corpus that is no longer where it was may have been moved: it is not another one.
    """
    from data_pipeline.storage.files import read_json

    manifest = read_json(database / "manifest.json")
    settings = (manifest if isinstance(manifest, dict) else {}).get("settings", {})
    built_from = settings.get("corpus", corpus)
    asked, known = corpus_identity(corpus), corpus_identity(built_from)
    is_gone = os.path.isabs(known) and not os.path.exists(known)
    if asked != known and not is_gone:
        raise ValueError(
            f"{database} was built from {known or 'the text of this Python'}, not from "
            f"{asked or 'the text of this Python'}: name the corpus that you mean, or "
            "another --database"
        )


def has_settings(workdir: Path) -> bool:
    """Whether the settings of a run are kept in its folder."""
    return (workdir / _SETTINGS).is_file()


def record_settings(
    cfg: "Experiment", workdir: Path, parts: Collection[str] | None = None
) -> None:
    """Writes settings to a run's folder, from where later commands take them.

    Args:
        parts: what of the settings of a run that is there already becomes another; all of
            it, if not given.
    """
    from data_pipeline.storage.files import write_json

    settings = dataclasses.asdict(cfg)
    if parts is not None and (workdir / "run.json").exists():
        settings |= {
            part: kept
            for part, kept in kept_settings(workdir).items()
            if part not in parts
        }
    told = {"workdir": str(workdir), "commit": commit()}
    write_json(workdir / _SETTINGS, {"config": settings, **told})


def kept_settings(workdir: Path) -> dict:
    """The settings that a run's folder keeps, part by part; empty if it keeps none."""
    from data_pipeline.storage.files import read_json

    kept = read_json(workdir / _SETTINGS)
    return kept.get("config", {}) if isinstance(kept, dict) else {}


def commit() -> str:
    """The commit that runs, "-dirty" if files were changed; "unknown" without git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            check=False,
        )
    except FileNotFoundError:
        return "unknown"
    return described.stdout.strip() or "unknown"
