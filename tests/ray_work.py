"""Work that workers on a Ray cluster are sent, and how the toy embedder comes to them."""

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import ray

from data_pipeline.build import shard_work
from tests.sent_work import Write
from tests.toy_embedder import ToyEmbedder


def use_toy_embedder() -> None:
    """Of every worker process; runs when it starts."""
    shard_work.load_embedder = lambda name: ToyEmbedder()


@dataclasses.dataclass(frozen=True)
class KilledOnce:
    """Its process is killed in the middle of one shard, the first time."""

    work: Write
    victim: str
    marks: Path

    def __call__(self, shard: str, made: Path) -> Iterator[int | str]:
        if shard == self.victim:
            (made / "half").write_text("half")
            mark = self.marks / f"tried-{os.getpid()}"
            mark.touch()
            if len(list(self.marks.iterdir())) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        yield from self.work(shard, made)
        if shard == self.victim:
            (made / "half").unlink()


@dataclasses.dataclass(frozen=True)
class StuckOn:
    """On one node never ends; on the others begins when that one has a shard."""

    work: Write
    node_id: str
    marks: Path

    def __call__(self, shard: str, made: Path) -> Iterator[int | str]:
        here = ray.get_runtime_context().get_node_id()
        if here == self.node_id:
            (made / "half").write_text("half")
            (self.marks / shard).touch()
            time.sleep(600)
        while not list(self.marks.iterdir()):
            time.sleep(0.05)
        yield from self.work(shard, made)
