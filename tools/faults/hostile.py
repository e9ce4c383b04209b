"""What a database folder that was made to do harm can do to whoever opens and changes it.

Checksums are made right again after every attack: they are no secret. Nothing outside of
the folder may be run, read by a path or changed; `broken` counts what was.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import functools
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from data_pipeline.database import versions
from data_pipeline.storage.files import (
    describe_files,
    fingerprint,
    read_json,
    sha256_of,
    write_json,
    write_sealed,
)
from data_pipeline.storage.stage_record import identity
from tools.benchmark.result import Row, progress
from tools.faults import damage, small_database, toy_embedder

_OUTCOMES = (
    "same answers",
    "refused",
    "other answers",
    "not named",
    "broken",
)  # worse ones later
_MOST_S = 300.0  # of all steps after one attack
_HUGE = 10**12
_OUTSIDE = "../outside"
_VERSION = "versions/000002.json"
_DATASET = "dataset/all/retro/1.0.0"
_FIELDS = {
    "manifest.json": "chunk_len embedding_width vocab_size index settings contents",
    _VERSION: "deltas replaced contents",
    "versions/current.json": "version",
    "versions/oldest.json": "version",
    "index/00000/index/meta.json": "kind rows width",
    f"{_DATASET}/dataset_info.json": "splits fileFormat",
    "chunks/stage.json": "shards files",
}
_LINKS = (
    "chunks chunks/train-00000 chunks/train-00000/tokens.npy deltas deltas/000001 "
    "versions versions/000002.json documents/all/train-00000.parquet compacted "
    "manifest.json dataset dataset/all"
)
_TABLES = (
    "chunks/train-00000/tokens chunks/train-00000/documents embeddings/train-00000/vectors "
    "index/00000/ids neighbours/train-00000/ids versions/000002 deltas/000001/tokens"
)
_MARK = "payload-ran"

Attack = Callable[[Path], None]


def rows(scratch: Path, args: argparse.Namespace, notes: list[str]) -> list[Row]:
    """Gives a row for each kind of attack; notes what was neither refused nor harmless."""
    with toy_embedder.in_place_of_all():
        whole = damage.updated(scratch, args.seed)
    made: list[Row] = []
    with contextlib.closing(_User(whole, scratch)) as user:
        for kind, attacks in _kinds().items():
            progress(f"{len(attacks)} hostile folders: {kind}")
            counts: collections.Counter[str] = collections.Counter()
            for name, attack in attacks.items():
                outcome, said = user.outcome(attack)
                counts[outcome] += 1
                if outcome not in _OUTCOMES[:2]:
                    notes.append(f"{kind}, {name}: {outcome} {said}")
            row: Row = {"hostile": kind, "times": len(attacks)}
            made.append(row | {name: counts[name] for name in _OUTCOMES})
    return made


def _kinds() -> dict[str, dict[str, Attack]]:
    """Gives all attacks, by kind and name."""
    stages = ["chunks", "embeddings", "index", "documents", "tokenizer"]
    # What stands in for it is there, so that the version can be opened.
    paths: list[tuple[str, dict]] = []
    paths += [(_VERSION, {"replaced": {_OUTSIDE: "deltas/000001"}})]
    paths += [(_VERSION, {"replaced": {"{outside}/documents": "deltas/000001"}})]
    paths += [("manifest.json", {"contents": {_OUTSIDE: "0"}})]
    for form in (f"../{_OUTSIDE}", "{outside}"):
        stands_in = {"chunks/train-00000": f"{form}/chunks/train-00000"}
        paths += [(_VERSION, {"replaced": stands_in})]
        paths += [(_VERSION, {"deltas": [f"{form}/deltas/000001"]})]
        paths += [
            (f"{stage}/stage.json", {"shards": [f"{form}/{stage}/train-00000"]})
            for stage in stages
        ]
    lies = [
        (file, {name: value})
        for file, names in _FIELDS.items()
        for name in names.split()
        for value in (_HUGE, -1, "{}")
    ]
    return {
        "features.json names a module": {
            place: functools.partial(_naming, place)
            for place in ("top", "inputs_L", "a new one")
        },
        "paths that lead out": {
            str(one): functools.partial(_editing, *one) for one in paths
        },
        "links that lead out": {
            name: functools.partial(_linking, name) for name in _LINKS.split()
        },
        "headers of arrays that lie": {
            f"{table}: {lie}": functools.partial(_lying, f"{table}.npy", lie)
            for table in _TABLES.split()
            for lie in ("huge", "negative", "objects", "empty", "floats", "cut")
        },
        "counts that lie": {
            str(one): functools.partial(_editing, *one) for one in lies
        },
    }


def _naming(place: str, folder: Path) -> None:
    """Makes features.json name a module that lies in the folder."""
    mark = str(folder.parent / "outside" / _MARK)
    (folder / "payload.py").write_text(f"open({mark!r}, 'w')\nclass X: pass\n")
    path = folder / _DATASET / "features.json"
    features = json.loads(path.read_text())
    inner = features["featuresDict"]["features"]
    inner.setdefault(place, dict(inner["inputs_L"]))
    target = features if place == "top" else inner[place]
    target["pythonClassName"] = f"{folder.name}.payload.X"
    path.write_text(json.dumps(features))


def _editing(name: str, fields: Mapping, folder: Path) -> None:
    """Gives values to fields of a JSON file, in a database without its older versions."""
    write_sealed(folder / "versions" / "oldest.json", {"version": 2})
    value = read_json(folder / name) or {}
    outside = str(folder.parent / "outside")
    value |= json.loads(json.dumps(fields).replace("{outside}", outside))
    value.pop("checksum", None)
    is_sealed = name.startswith(("versions", "manifest"))
    (write_sealed if is_sealed else write_json)(folder / name, value)


def _linking(name: str, folder: Path) -> None:
    """Puts a link to the same name outside in the place of a file or folder."""
    path, outside = folder / name, folder.parent / "outside" / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    outside.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)


def _lying(name: str, lie: str, folder: Path) -> None:
    """Gives an array another header than its bytes have, or bytes that run when unpickled."""
    path = folder / name
    array = np.load(path)
    header = np.lib.format.header_data_from_array_1_0(array)
    rest = array.shape[1:]
    changes: dict[str, dict] = {
        "huge": {"shape": (_HUGE, *rest)},
        "negative": {"shape": (-len(array), *rest)},
        "objects": {"descr": "|O"},
        "empty": {"shape": (0, *rest)},
        "floats": {"descr": "<f2"},
    }
    header |= changes.get(lie, {})
    mark = folder.parent / "outside" / _MARK
    code = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    data = code if lie == "objects" else array.tobytes()
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(data[: len(data) // 2] if lie == "cut" else data)


def _reseal(folder: Path) -> None:
    """Makes all sizes and checksums right again, as far as lies leave something to seal."""
    manifest = read_json(folder / "manifest.json") or {}
    for shard in folder.glob("*/*/shard.json"):
        shard.unlink()
        write_json(shard, describe_files(shard.parent))
    lies = contextlib.suppress(TypeError, AttributeError, KeyError)
    for path in folder.glob("*/stage.json"):
        made = read_json(path) or {}
        with lies:
            shards = {
                s: read_json(path.parent / s / "shard.json") for s in made["shards"]
            }
            made["files"] |= shards
        with lies:
            of_stage = identity(made["settings"], made["inputs"], made["shards"])
            made["fingerprint"] = fingerprint(of_stage)
        made["contents"] = fingerprint(made["files"])
        write_json(path, made)
        with lies:
            if path.parent.name in manifest["contents"]:
                manifest["contents"][path.parent.name] = made["contents"]
    manifest.pop("checksum", None)
    write_sealed(folder / "manifest.json", manifest)
    for path in folder.glob("versions/[0-9]*.json"):
        facts = read_json(path) or {}
        facts.pop("checksum", None)
        facts["deleted_sha256"] = sha256_of(path.with_suffix(".npy"))
        with lies:
            facts["base"] = versions.base_of(manifest)
            for delta in facts["deltas"]:
                shard = folder / "deltas" / delta / "shard.json"
                facts["contents"][f"deltas/{delta}"] = fingerprint(read_json(shard))
        write_sealed(path, facts)


class _User:
    """A process that uses attacked copies, one after the other; another one after harm."""

    def __init__(self, whole: Path, place: Path):
        """`whole` is what is copied into `place`, attacked and used."""
        self._whole, self._place, self.use = whole, place, _use
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def outcome(self, attack: Attack) -> tuple[str, str]:
        """Attacks a copy beside a copy that must stay; tells what came of its use."""
        folder, outside = self._place / "attacked", self._place / "outside"
        for copy in (folder, outside):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(self._whole, copy)
        attack(folder)
        with contextlib.suppress(OSError):  # behind a link there may be nothing
            _reseal(folder)
        before = describe_files(outside)
        outcome, said = self._used(folder)
        if describe_files(outside) != before:
            outcome, said = "broken", "changed what is outside"
        if outcome == "broken":
            self.close()
        return outcome, said

    def _used(self, folder: Path) -> tuple[str, str]:
        if self._pool is None:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), _begin, (self._place,)
            )
        try:
            return self._pool.submit(self.use, folder).result(_MOST_S)
        except TimeoutError:
            for process in multiprocessing.active_children():
                process.kill()
            return "broken", f"no end in {_MOST_S} s"
        except concurrent.futures.BrokenExecutor:
            return "broken", "the process died"

    def close(self) -> None:
        """Ends the process."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


_wanted: list[object] = []  # answers and sequences without an attack
_read_outside: list[str] = []  # paths


def _begin(place: Path) -> None:
    """Begins a process in a folder whose modules can be imported, and watches what it opens."""
    toy_embedder.begin("toy")
    outside = place / "outside"
    _wanted[:] = small_database.facts_of(outside), damage.sequences_of(outside)
    os.chdir(place)
    sys.path.insert(0, "")

    def note(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.normpath(place / os.fsdecode(arguments[0]))
            if path.startswith(os.fspath(outside)):
                _read_outside.append(path)

    sys.addaudithook(note)


def _use(folder: Path) -> tuple[str, str]:
    """Does all that can be done with a database; gives the worst outcome, and its words."""
    steps: dict[str, Callable[[], object]] = {
        "search": lambda: small_database.facts_of(folder) == _wanted[0],
        "train": lambda: damage.sequences_of(folder) == _wanted[1],
        "verify": lambda: small_database.damaged_files(folder),
        "replace": lambda: small_database.change("replace", folder),
        "compact": lambda: small_database.change("compact", folder),
    }
    outcomes = [("same answers", "")]
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        for step, work in steps.items():
            asked = thread.submit(work)
            error = asked.exception()
            if isinstance(error, ValueError) or getattr(error, "filename", None):
                outcomes.append(("refused", str(error)))
            elif error is not None:
                said = f"({step}: {type(error).__name__}: {error})"
                outcomes.append(("not named", said))
            elif asked.result() is False:
                outcomes.append(("other answers", f"({step})"))
    return _worst(outcomes)


def _worst(outcomes: list[tuple[str, str]]) -> tuple[str, str]:
    """Gives the worst of outcomes, and of what was read meanwhile."""
    read = [("broken", f"(read {path})") for path in _read_outside[:1]]
    _read_outside.clear()
    return max([*outcomes, *read], key=lambda outcome: _OUTCOMES.index(outcome[0]))
