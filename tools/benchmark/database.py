"""The seconds and the memory in which a database opens, loads and answers.

    python -m tools.benchmark database --database=work/tiny/database

Its own embeddings are the queries, so each finds itself first; texts are of its own chunks.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipeline.database import Database
from tools.benchmark import memory
from tools.benchmark.result import Result, Row, alternate, describe_machine, significant

_K, _BATCH, _TEXTS = 10, 64, 16


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `database`."""
    command.add_argument("--database", type=Path, required=True, help="its folder")


def run(args: argparse.Namespace) -> Result:
    """Gives seconds to open, load and search, and gigabytes resident."""
    began_bytes = memory.process_peak_bytes()
    rows: list[Row] = []

    def add(what: str, elapsed_s: float) -> None:
        peak_gb = round(memory.process_peak_bytes() / 1e9, 2)
        rows.append({"what": what, "s": significant(elapsed_s, 3), "peak GB": peak_gb})

    def took(what: str, call: Callable):
        start_s = time.perf_counter()
        found = call()
        add(what, time.perf_counter() - start_s)
        return found

    opened = took("open, once", lambda: Database.open(args.database))
    took("load the index, once", opened.snapshot.index)
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(opened.snapshot.searchable, _BATCH, replace=False))
    vectors_QW = opened.snapshot.vectors(ids).astype(np.float32)
    texts = [opened.found(int(chunk)).text for chunk in ids[:_TEXTS]]
    searches = {
        "one vector": lambda: opened.nearest(vectors_QW[:1], _K),
        f"{_BATCH} vectors": lambda: opened.nearest(vectors_QW, _K),
        f"{_TEXTS} texts, passages": lambda: opened.search(texts, _K),
    }
    for what, elapsed_s in alternate(searches, 5 * args.rounds).items():
        add(what, statistics.median(elapsed_s))
    for row in rows:
        row["chunks"] = len(opened.snapshot.searchable)
    conditions = describe_machine(("numpy", "scann", "jax")) | {
        "chunks": len(opened.snapshot.searchable),
        "index": opened.manifest["index"]["kind"],
        "index shards": opened.snapshot.num_shards,
    }
    notes = [f"{began_bytes / 1e9:.2f} GB are resident before: Python, numpy and JAX"]
    return Result(name="database", conditions=conditions, rows=rows, notes=notes)
