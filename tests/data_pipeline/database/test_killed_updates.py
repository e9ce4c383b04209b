"""kill -9 between the steps of an update: the old version or the new, never a broken one."""

import multiprocessing
import os
import pathlib
import shutil
import signal

import numpy as np
import pyarrow.parquet
import pytest

from data_pipeline.database import Database, versions
from tests import tiny_corpus

pytestmark = pytest.mark.usefixtures("toy_embedder")

# Children of a process that has this module and none of JAX's threads.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])
NEWS = "Nine violet tortoises rehearsed an opera inside the marble lighthouse."
QUERIES = [NEWS, tiny_corpus.PLANTED, "the same again"]
# All that an update writes or removes goes through one of these.
STEPS = [
    (os, "replace"),
    (np, "save"),
    (shutil, "rmtree"),
    (pathlib.Path, "unlink"),
    (pathlib.Path, "mkdir"),
    (pyarrow.parquet, "write_table"),
]


def add(database):
    records = [{"id": "news", "text": NEWS}, {"id": "brief", "text": "A " + NEWS}]
    database.replace(records)  # again, after a kill that came too late to stop it


def replace_and_delete(database):
    database.replace([{"id": tiny_corpus.PLANTED_IN, "text": "All is new. " + NEWS}])
    if database.snapshot.has_document("brief"):
        database.delete(["brief"])


def compact(database):
    database.compact()


UPDATES = [add, replace_and_delete, compact]


def answers(folder):
    """What a fresh process would find."""
    found = Database.open(folder).search(QUERIES, 50)
    return [[(f.document_id, f.offset, f.distance) for f in row] for row in found]


def kill_before(step: int) -> None:
    """Ends this process with SIGKILL before the update's step of that number."""
    taken = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal taken
            if taken == step:
                os.kill(os.getpid(), signal.SIGKILL)
            taken += 1
            return function(*args, **kwargs)

        return call

    for owner, name in STEPS:
        setattr(owner, name, counted(getattr(owner, name)))


def run_killed(update, folder, step: int) -> bool:
    """Runs an update in a child; whether it was killed."""
    child = FORKS.Process(target=update_until_killed, args=(update, folder, step))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def update_until_killed(update, folder, step: int) -> None:
    """What the child does; it ends without the interpreter's own last steps."""
    with tiny_corpus.toy_embedder():
        kill_before(step)
        update(Database.open(folder))
        os._exit(0)


@pytest.mark.parametrize(
    "number", range(len(UPDATES)), ids=lambda n: UPDATES[n].__name__
)
def test_killed_between_steps(tiny_database, tmp_path, number):
    without = shutil.ignore_patterns("dataset")  # which no update reads
    before = shutil.copytree(tiny_database.folder, tmp_path / "before", ignore=without)
    for update in UPDATES[:number]:
        update(Database.open(before))
    states = [answers(before)]
    after = shutil.copytree(before, tmp_path / "after")
    if UPDATES[number] is replace_and_delete:  # two versions, one after the other
        opened = Database.open(after)
        UPDATES[number](opened)
        versions.put_in_force(after, opened.version - 1)
        states.append(answers(after))
        versions.put_in_force(after, opened.version)
    else:
        UPDATES[number](Database.open(after))
    states.append(answers(after))
    kills = 0
    # All 109 steps passed when this was written; every few of them guard it.
    for step in range(0, 10_000, 4 if UPDATES[number] is compact else 2):
        folder = shutil.copytree(before, tmp_path / "killed")
        if not run_killed(UPDATES[number], folder, step):
            break
        kills += 1
        assert answers(folder) in states
        # What the kill left is in nobody's way.
        UPDATES[number](Database.open(folder))
        assert answers(folder) == states[-1]
        if UPDATES[number] is compact:
            assert "umbrellas" not in text_of(folder)
        shutil.rmtree(folder)
    assert kills >= 10
    assert answers(folder) == states[-1]


def text_of(folder) -> str:
    """Of all documents."""
    tables = folder.rglob("*.parquet")
    texts = [pyarrow.parquet.read_table(path).column("text") for path in tables]
    return str([column.to_pylist() for column in texts])
