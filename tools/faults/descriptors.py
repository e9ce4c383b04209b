"""What a database's commands do with few file descriptors, after many shards and many adds.

Each step is a process of its own whose soft and hard limits are set before it begins.
"""

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import os
import resource
from collections.abc import Callable
from pathlib import Path

from data_pipeline.database import Database
from tools.benchmark.result import Row, progress
from tools.faults import small_database, toy_embedder

_MOST_OPEN = 256
_DOCUMENTS, _SHARD_BYTES = 320, 400  # two documents a shard


def rows(scratch: Path, args: argparse.Namespace, notes: list[str]) -> list[Row]:
    """Gives a row for each step; notes what failed."""
    corpus = small_database.write_corpus(scratch / "corpus", args.seed, _DOCUMENTS)
    folder = scratch / "database"
    made: list[Row] = []
    for step, (function, arguments) in _steps(corpus, folder, args).items():
        progress(f"{step}, with {_MOST_OPEN} descriptors")
        with concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _limited, (args.embedder,)
        ) as pool:
            row, said = pool.submit(_counted, function, arguments).result()
        made.append(row | {"step": step, "descriptors": _MOST_OPEN})
        notes += [f"{step}: {said}"] if said else []
        if (
            step == "build" and said
        ):  # the other steps have something to do nevertheless
            with toy_embedder.in_place(args.embedder):
                _build(corpus, folder, args.embedder)
    return made


def _steps(
    corpus: Path, folder: Path, args: argparse.Namespace
) -> dict[str, tuple[Callable, tuple]]:
    return {
        "build": (_build, (corpus, folder, args.embedder)),
        "search": (small_database.facts_of, (folder,)),
        f"add, {args.adds} times": (_add, (folder, args.adds)),
        "search after that": (small_database.facts_of, (folder,)),
        "compact": (small_database.change, ("compact", folder)),
        "search after compact": (small_database.facts_of, (folder,)),
        "serve": (_serve, (folder, args)),
    }


def _limited(embedder: str) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MOST_OPEN, _MOST_OPEN))
    toy_embedder.begin(embedder)


def _counted(function: Callable, arguments: tuple) -> tuple[Row, str]:
    """Runs a step; gives its row, and what it said if it failed."""
    said = ""
    try:
        function(*arguments)
    except (ValueError, OSError, RuntimeError) as error:
        said = str(error)
    row: Row = {
        "done": int(not said),
        "failed": int(bool(said)),
        "open at its end": len(os.listdir("/proc/self/fd")),
    }
    return row, said


def _build(corpus: Path, folder: Path, embedder: str) -> None:
    small_database.make(
        corpus, folder, embedder=embedder, shard_size_bytes=_SHARD_BYTES
    )


def _add(folder: Path, times: int) -> None:
    opened = Database.open(folder)
    for number in range(times):
        opened.add([{"id": f"added-{number}", "text": f"Tower {number} has a clock."}])


def _serve(folder: Path, args: argparse.Namespace) -> None:
    """Asks a service whose servers have inherited the limit."""
    from data_pipeline.service.client import RetrievalClient
    from tools.faults import servers

    made = servers.Service(folder, args.queue, replicas=1, embedder=args.embedder)
    with (
        contextlib.closing(made),
        RetrievalClient(f"grpc://127.0.0.1:{made.port}") as client,
    ):
        client.search(["Tower 7 has a clock."], 5)
