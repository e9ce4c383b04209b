"""Kills of builds and updates with kill -9 at random moments, and what they leave.

    python -m tools.faults.kills KILLS SEED

The command prints the rows as JSON. It is a process of its own, which forks: a child must
start at once, and a process that has run TensorFlow or JAX can't be forked.
"""

import argparse
import collections
import functools
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data_pipeline.build.pipeline import WITH_STEPS
from data_pipeline.database import Database
from data_pipeline.storage import costs
from data_pipeline.storage.files import read_json
from tools.benchmark.result import Row, progress
from tools.faults import small_database, toy_embedder

_POLL_S = 0.001
_LOCKS = (".builder", ".writer")
_MOST_ATTEMPTS = 20  # for one kill: the others came too late


def rows(scratch: Path, args: argparse.Namespace, notes: list[str]) -> list[Row]:
    """Gives the rows of all kinds of kills, from a process that forks."""
    command = [sys.executable, "-m", "tools.faults.kills"]
    command += [str(args.kills), str(args.seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _start(work: Callable[[], None]) -> int:
    """Starts work in a forked process; gives its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:  # nothing of the parent's goes on here
        if status:
            traceback.print_exc()
        os._exit(status)


def _was_killed(child: int) -> bool:
    """Waits for a child's end; RuntimeError unless it ended by itself or by -9."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise RuntimeError(f"a child ended with {os.waitstatus_to_exitcode(status)}")
    return False


def _under_way(folder: Path) -> str | None:
    """Finds the stage that is being made, or was when the build was killed."""
    begun = [
        stage
        for stage in WITH_STEPS
        if (folder / stage / "building.json").exists()
        and not (folder / stage / "stage.json").exists()
    ]
    return begun[-1] if begun else None


class _BuildKills:
    """Kills of builds of one corpus, stage after stage, each build finished at the end."""

    def __init__(self, corpus: Path, index: str, scratch: Path, rng: random.Random):
        """Builds once without a kill, as what the others are compared with."""
        self._rng = rng
        self._whole, self._folder = scratch / f"whole-{index}", scratch / "killed"
        self._make = functools.partial(small_database.make, corpus, index=index)
        start_s = time.monotonic()
        assert not _was_killed(_start(lambda: self._make(self._whole)))
        whole_s = time.monotonic() - start_s
        self._took_s: dict[str, float] = collections.defaultdict(float)
        for cost in costs.read(self._whole):
            self._took_s[cost.stage] += cost.wall_s
        # Shards are made side by side, so their seconds add up to more than the build's.
        self._pace = min(1.0, whole_s / sum(self._took_s.values()))
        self._wanted = small_database.facts_of(self._whole)
        self.left: collections.Counter[str] = collections.Counter()
        self.finished: list[bool] = []

    @property
    def unfinished(self) -> bool:
        """Tells whether a build was begun and not finished."""
        return self._folder.exists()

    def kill_in(self, stage: str) -> None:
        """Starts or goes on with the build and kills it in a stage, if it gets there."""
        child = _start(lambda: self._make(self._folder))
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while (
            _under_way(self._folder) != stage
            and os.waitid(os.P_PID, child, ended) is None
        ):
            time.sleep(_POLL_S)
        time.sleep(self._rng.uniform(0, self._pace * self._took_s[stage]))
        os.kill(child, signal.SIGKILL)
        if not _was_killed(child):
            return
        self.left[self._state()] += 1

    def _state(self) -> str:
        try:
            facts = small_database.facts_of(self._folder)
        except ValueError as error:
            message = str(error)
            refused = "no finished database" in message or "was broken off" in message
            return "old" if refused else "broken"
        return "new" if facts == self._wanted else "broken"

    def finish(self) -> None:
        """Builds to the end, and compares every file with the undisturbed build's."""
        assert not _was_killed(_start(lambda: self._make(self._folder)))
        made, wanted = contents(self._folder), contents(self._whole)
        different = [
            name
            for name in sorted(made.keys() | wanted.keys())
            if made.get(name) != wanted.get(name)
        ]
        if different:
            progress(f"restarted, these came out otherwise: {', '.join(different)}")
        facts = small_database.facts_of(self._folder)
        self.finished.append(not different and facts == self._wanted)
        self.recall_at_2 = _recorded_recall(self._folder)
        shutil.rmtree(self._folder)

    def row(self) -> Row:
        """Gives what was counted."""
        return _row(
            f"build, {_manifest(self._whole)['index']['kind']}",
            self.left,
            self.finished,
            (_recorded_recall(self._whole), self.recall_at_2),
        )


def _row(
    what: str,
    left: collections.Counter[str],
    equal: Sequence[bool],
    recalls: tuple[float, float],
) -> Row:
    """Makes the row of a kind of kill; a restart that is not equal counts as broken."""
    return {
        "kill -9 of": what,
        "kills": left.total(),
        "left old": left["old"],
        "left new": left["new"],
        "broken": left["broken"] + equal.count(False),
        "restarts equal": f"{sum(equal)} of {len(equal)}",
        "recall@2 before": recalls[0],
        "recall@2 after": recalls[1],
    }


def _manifest(folder: Path) -> dict:
    return read_json(folder / "manifest.json") or {}


def _recorded_recall(folder: Path) -> float:
    return _manifest(folder)["index"]["recall@2"]


def contents(folder: Path) -> dict[str, bytes]:
    """Reads every file below a folder; leaves out times and locks, which name processes."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (costs.FILE, *_LOCKS)
    }
    if manifest := read_json(folder / "manifest.json"):
        del manifest["checksum"], manifest["index"]["queries_per_s"]
        found["manifest.json"] = json.dumps(manifest).encode()
    return found


def _build_row(made: _BuildKills, stages: Sequence[str], kills: int) -> Row:
    """Kills builds in one stage after the other, as often as they are under way."""
    attempts = 0
    while made.left.total() < kills and attempts < _MOST_ATTEMPTS * kills:
        made.kill_in(stages[attempts % len(stages)])
        attempts += 1
        if attempts % len(stages) == 0:
            made.finish()
    if made.unfinished:
        made.finish()
    return made.row()


def _begun(name: str, folder: Path) -> int:
    """Starts an update in a child and waits until it begins; gives the child's id."""
    reading, writing = os.pipe()

    def work() -> None:
        opened = Database.open(folder)
        assert (
            opened.snapshot.index().size and opened.embedder.width
        )  # loaded before it begins
        os.write(writing, b".")
        small_database.UPDATES[name](opened)

    child = _start(work)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    return child


def _update_row(name: str, before: Path, kills: int, rng: random.Random) -> Row:
    """Kills an update again and again; after each it is done again."""
    after = small_database.copy(before, before.with_name("after"))
    child, start_s = _begun(name, after), time.monotonic()
    assert not _was_killed(child)
    took_s = time.monotonic() - start_s
    old, new = small_database.facts_of(before), small_database.facts_of(after)
    version = Database.open(before).version
    left: collections.Counter[str] = collections.Counter()
    equal: list[bool] = []
    folder = before.with_name("killed")
    for _ in range(_MOST_ATTEMPTS * kills):
        small_database.copy(before, folder)
        child = _begun(name, folder)
        time.sleep(rng.uniform(0, 1.15 * took_s))  # the switch comes last
        os.kill(child, signal.SIGKILL)
        if not _was_killed(child):
            continue
        state = _state_of(folder, version, old, new)
        left[state] += 1
        if state != "new" or name == "compact":
            assert not _was_killed(_begun(name, folder))
        equal.append(small_database.facts_of(folder) == new)
        if left.total() == kills:
            break
    recalls = (old.recall_at_2, new.recall_at_2)
    return _row(name, left, equal, recalls)


def _state_of(folder: Path, version: int, old, new) -> str:
    """Tells whether the version in force is the old or the new one, and whole."""
    try:
        facts, now = small_database.facts_of(folder), Database.open(folder).version
        is_whole = not small_database.damaged_files(folder)
    except ValueError:
        return "broken"
    name, wanted = ("old", old) if now == version else ("new", new)
    return name if is_whole and facts == wanted else "broken"


def _rows(kills: int, seed: int) -> Iterator[Row]:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch, toy_embedder.in_place_of_all():
        # An exact index is made in a moment that no kill meets, ScaNN's is trained.
        for index, documents, stages in (
            ("exact", 60, WITH_STEPS),
            ("scann", 240, ("index", "searches")),
        ):
            progress(f"killing {kills} builds, {index} index")
            folder = Path(scratch) / f"corpus-{index}"
            corpus = small_database.write_corpus(folder, seed, documents)
            made = _BuildKills(corpus, index, Path(scratch), rng)
            yield _build_row(made, stages, kills)
        whole = Path(scratch) / "whole-exact"
        before = small_database.copy(whole, Path(scratch) / "before")
        for name in small_database.UPDATES:
            progress(f"killing {kills} times: {name}")
            yield _update_row(name, before, kills, rng)
            assert not _was_killed(_begun(name, before))


def main(kills: str, seed: str) -> None:
    """Prints the rows as JSON."""
    # Imported once, so that children start at once; run in them alone.
    importlib.import_module("tensorflow_datasets")
    print(json.dumps(list(_rows(int(kills), int(seed)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
