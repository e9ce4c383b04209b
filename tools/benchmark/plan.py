"""Costs of builds of several sizes, and what they say of a size that was not built.

Every stage but one costs the same for a chunk however many there are: documents are read
and cut one by one, chunks embedded one by one, and an index holds a bounded number of
them. The neighbours are searched in every shard of the index, so their cost for a chunk
grows with the number of shards.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.build.pipeline import STEPS, WITH_STEPS
from data_pipeline.storage import costs
from data_pipeline.storage.files import read_json
from tools.benchmark.result import UNKNOWN, Row, significant

_MILLION = 1e6
_HOUR_S = 3600
# Made in one process; the others by shard, so by as many machines as there are. The
# tokenizer is trained on a sample, whatever the size.
_WHOLE = ("kept", "documents", "dataset")
_NAMES = tuple(name for name in WITH_STEPS if name != "tokenizer")
_BY_CHUNK_SHARD = ("chunks", "embeddings", "neighbours")
_PER_SEARCH = ("searches",)  # cost grows with the shards of the index
_GIVEN_UP = tuple(step for steps in STEPS.values() for step in steps)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage of a build took, all shards together.

    Attributes:
        cpu_s: for a million chunks; for `searches` also for one shard of the index.
        wall_s: likewise, with the cores of the machine that built.
        size_bytes: for a chunk, of the files that it leaves.
        peak_memory_bytes: of the largest process.
        share: of the chunks that the costs are of.
    """

    cpu_s: float
    wall_s: float
    size_bytes: float
    peak_memory_bytes: int
    share: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """A database's chunks, shards of the index, and stages by name."""

    chunks: int
    index_shards: int
    stages: dict[str, Stage]


def measure(database: Path) -> Measured:
    """Reads what building a database took.

    Raises:
        ValueError: if it is no whole database, or nobody recorded its costs.
    """
    manifest = read_json(database / "manifest.json")
    recorded = costs.read(database)
    if manifest is None or not recorded:
        raise ValueError(f"{database} is not built, or its {costs.FILE} is missing")
    chunks = sum(manifest["chunks"].values())
    index_shards = manifest["index"]["shards"]
    by_stage: dict[str, list[costs.ShardCost]] = defaultdict(list)
    for cost in recorded:
        by_stage[cost.stage].append(cost)
    rows_of = {path.name: _rows(path) for path in (database / "chunks").glob("*-*")}
    stages = {}
    for name, of_shards in by_stage.items():
        covered = chunks
        if name in _BY_CHUNK_SHARD:
            covered = sum(rows_of.get(cost.shard, 0) for cost in of_shards)
        searches = covered * (index_shards if name in _PER_SEARCH else 1)
        stages[name] = Stage(
            cpu_s=sum(cost.cpu_s for cost in of_shards) / searches * _MILLION,
            wall_s=sum(cost.wall_s for cost in of_shards) / searches * _MILLION,
            size_bytes=sum(cost.size_bytes for cost in of_shards) / searches,
            peak_memory_bytes=max(cost.peak_memory_bytes for cost in of_shards),
            share=covered / chunks,
        )
    return Measured(chunks, index_shards, stages)


def growth_rows(measured: Sequence[Measured]) -> list[Row]:
    """A row for each size, a part for each stage; last, how it compares with the smallest."""
    rows: list[Row] = []
    for name in _NAMES:
        first = measured[0].stages.get(name)
        for size in measured:
            stage = size.stages.get(name)
            if stage is None:
                continue
            grown = UNKNOWN if first is None else round(stage.cpu_s / first.cpu_s, 2)
            rows.append(
                {
                    "part": name,
                    "chunks": size.chunks,
                    "index shards": size.index_shards,
                    "CPU s a million": significant(stage.cpu_s, 3),
                    "s a million": significant(stage.wall_s, 3),
                    "bytes a chunk": round(stage.size_bytes),
                    "peak GB": round(stage.peak_memory_bytes / 1e9, 2),
                    "measured on": f"{stage.share:.0%}",
                    "CPU s, smallest = 1": grown,
                }
            )
    return rows


@dataclasses.dataclass(frozen=True)
class Planned:
    """What a database of another size would take.

    Attributes:
        machines: that hold the index in memory, in half of it.
        hours: of the stages that are made shard by shard, on so many machines.
    """

    chunks: int
    index_shards: int
    core_hours: dict[str, float]
    size_bytes: float
    index_size_bytes: float
    machines: int
    hours: float


def planned(largest: Measured, chunks: int, *, cores: int, memory_gb: int) -> Planned:
    """By the costs of the largest that was built, and shards of the index as large.

    Args:
        cores, memory_gb: of a machine; a core is taken to be as fast as one here.
    """
    shards = max(1, round(chunks * largest.index_shards / largest.chunks))
    millions = chunks / _MILLION
    core_hours = {
        name: largest.stages[name].cpu_s
        * millions
        * (shards if name in _PER_SEARCH else 1)
        / _HOUR_S
        for name in _NAMES
        if name in largest.stages
    }
    kept = [stage for name, stage in largest.stages.items() if name not in _GIVEN_UP]
    index_size_bytes = largest.stages["index"].size_bytes * chunks
    machines = math.ceil(index_size_bytes / (memory_gb * 1e9 / 2))
    parallel_hours = sum(
        hours for name, hours in core_hours.items() if name not in _WHOLE
    )
    return Planned(
        chunks=chunks,
        index_shards=shards,
        core_hours=core_hours,
        size_bytes=sum(stage.size_bytes for stage in kept) * chunks,
        index_size_bytes=index_size_bytes,
        machines=machines,
        hours=parallel_hours / (cores * machines),
    )


def plan_lines(
    largest: Measured, sizes: Sequence[int], *, cores: int, memory_gb: int
) -> list[str]:
    """A line for each size; arguments as of `planned`."""
    lines = []
    for chunks in sizes:
        found = planned(largest, chunks, cores=cores, memory_gb=memory_gb)
        hours = ", ".join(
            f"{name} {significant(hours, 3):,}"
            for name, hours in found.core_hours.items()
        )
        lines.append(
            f"plan for {chunks:,} chunks: {found.index_shards:,} shards of the index; "
            f"{found.size_bytes / 1e12:,.2f} TB on disk, "
            f"{found.index_size_bytes / 1e12:,.2f} TB of it the index, in half of the "
            f"memory of {found.machines:,} machines of {memory_gb} GB; core hours: "
            f"{hours}; the stages by shards take {found.hours:,.1f} h on these machines "
            f"of {cores} cores"
        )
    return lines


def _rows(shard: Path) -> int:
    """Chunks of a shard, from the header of its array."""
    return len(np.load(shard / "tokens.npy", mmap_mode="r"))
