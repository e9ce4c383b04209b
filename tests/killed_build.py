"""Builds the tiny database in a child again and again, killed -9 each time but the last.

Usage: python -m tests.killed_build CORPUS FOLDER SEED KILLS SPAN_S
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import tensorflow_datasets  # noqa: F401  imported once, so that children start at once

from data_pipeline.build import pipeline
from tests import tiny_corpus


def run(corpus: str, folder: Path) -> None:
    with tiny_corpus.toy_embedder():
        pipeline.Build(tiny_corpus.config(corpus), folder).run()


def start(corpus: str, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    run(corpus, folder)
    sys.stdout.flush()
    os._exit(0)


def main(corpus: str, folder: str, seed: str, kills: str, span_s: str) -> None:
    rng = random.Random(int(seed))
    longest_s = float(span_s)
    for number in range(1, int(kills) + 1):
        child = start(corpus, Path(folder))
        time.sleep(rng.uniform(0, longest_s * number / int(kills)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print("status", status, flush=True)
    _, status = os.waitpid(start(corpus, Path(folder)), 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(*sys.argv[1:])
