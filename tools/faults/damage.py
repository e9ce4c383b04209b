"""What damage of a database leaves: a flipped byte, a missing file, a foreign shard.

What opens, loads and searches a damaged database must refuse it and name the file; what it
does not read, `verify` must. Sequences are read as training reads them.
"""

import argparse
import collections
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from google.protobuf import json_format

from data_pipeline.database import Database, manifest
from data_pipeline.sequences import batches
from tools.benchmark.result import Row, progress
from tools.faults import small_database, toy_embedder

# What a reader of a damaged file may raise.
_ERRORS = (
    *(ValueError, OSError, KeyError, TypeError, IndexError, AttributeError),
    *(tf.errors.OpError, json_format.Error),
)
_OUTCOMES = ("on opening", "by verify", "not named", "harmless", "wrong answer")


def rows(scratch: Path, args: argparse.Namespace, notes: list[str]) -> list[Row]:
    """Gives the rows; notes each file whose damage was not refused by name."""
    with toy_embedder.in_place_of_all():
        whole, other = (
            updated(scratch / name, args.seed + n) for n, name in enumerate("ab")
        )
        damage = _Damage(whole, other, scratch / "damaged", random.Random(args.seed))
        files = [path.relative_to(whole) for path in sorted(whole.rglob("*"))]
        files = [path for path in files if (whole / path).is_file()]
        shards = sorted(path.parent for path in files if path.name == "shard.json")
        progress(f"damaging {len(files)} files and {len(shards)} shards")
        made = [
            damage.row("a byte flipped", files, damage.flip),
            damage.row("a file missing", files, lambda path: path.unlink()),
            damage.row("a shard of another build", shards, damage.swap),
        ]
    notes += damage.notes
    return made


def updated(scratch: Path, seed: int) -> Path:
    """Builds a database with a version that adds and deletes; gives its folder."""
    corpus = small_database.write_corpus(scratch / "corpus", seed)
    small_database.make(corpus, scratch / "database")
    opened = Database.open(scratch / "database")
    for name in ("add", "delete"):
        small_database.UPDATES[name](opened)
    return scratch / "database"


class _Damage:
    """Damages one thing at a time in a copy, asks what it asks, and mends it."""

    def __init__(self, whole: Path, other: Path, folder: Path, rng: random.Random):
        """Copies a database to damage the copy; `other` is of another build."""
        self._whole, self._other, self._rng = whole, other, rng
        self._folder = shutil.copytree(whole, folder)
        self._facts = small_database.facts_of(whole)
        self._sequences = sequences_of(whole)
        self.notes: list[str] = []

    def flip(self, path: Path) -> None:
        """Changes one bit of a random byte; leaves an empty file as it is."""
        content = bytearray(path.read_bytes())
        if content:
            content[self._rng.randrange(len(content))] ^= 1 << self._rng.randrange(8)
        path.write_bytes(content)

    def swap(self, shard: Path) -> None:
        """Puts the shard of the same name of the other build in a shard's place."""
        shutil.rmtree(shard)
        shutil.copytree(self._other / shard.relative_to(self._folder), shard)

    def row(self, what: str, names: list[Path], damage) -> Row:
        """Counts the outcomes of damaging each file or folder by itself."""
        counts: collections.Counter[str] = collections.Counter()
        for name in names:
            damaged = self._folder / name
            damage(damaged)
            outcome = self._outcome(name)
            counts[outcome] += 1
            if outcome not in ("on opening", "by verify"):
                self.notes.append(f"{what}, {name}: {outcome}")
            self._mend(name)
        refused = counts["on opening"] + counts["by verify"]
        row: Row = {"damage": what, "times": len(names)}
        return row | {"refused, named": refused} | {o: counts[o] for o in _OUTCOMES}

    def _mend(self, name: Path) -> None:
        source, target = self._whole / name, self._folder / name
        if source.is_dir():
            shutil.rmtree(target)
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)

    def _outcome(self, name: Path) -> str:
        try:
            facts = small_database.facts_of(self._folder)
            sequences = sequences_of(self._folder)
        except _ERRORS as error:
            return "on opening" if _names(str(error), name) else "not named"
        found = small_database.damaged_files(self._folder)
        if any(_names(path, name) for path in found):
            return "by verify"
        same = facts == self._facts and sequences == self._sequences
        return "harmless" if same else "wrong answer"


def _names(message: str, name: Path) -> bool:
    """Tells whether a message names a file, or the shard or stage that it is of."""
    places: Iterator[Path] = (p for p in (name, *name.parents) if p != Path())
    return any(str(place) in message for place in places)


def sequences_of(folder: Path) -> int:
    """Gives a number that any change of any sequence changes; reads them all.

    Raises:
        ValueError: as training does, if they are of another database.
    """
    total, made_of = 0, manifest.read(folder)["fingerprint"]
    for split in ("train", "validation", "test"):
        read = batches.Sequences(folder / "dataset" / "all", split)
        if read.metadata.get("database") != made_of:
            raise ValueError(f"{folder / 'dataset'} was made from another database")
        for batch in read.in_order(4):
            total = hash((total, *(array.tobytes() for array in batch.values())))
    return total
