"""What each stage of a build costs as text grows, and what a larger database would take.

    python -m tools.benchmark growth --corpus=DIR --files=1,3,9 --work=work/growth

Builds a database of the first so many files of a folder, for each number, stage by stage,
each stage in a process of its own. Sizes share a tokenizer, the first's. Costs are those
that the builds recorded (`data_pipeline/storage/costs.py`), so a second run reads them and
builds nothing.
"""

import argparse
import dataclasses
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.build import pipeline
from data_pipeline.config import DataConfig
from data_pipeline.storage import costs
from data_pipeline.storage.files import read_json
from tools.benchmark.result import Result, Row, describe_machine, progress, significant

_CONFIG = "experiments/configs/tiny.py"
# For text of this size; the same for every size.
_SETTINGS = {"vocab_size": 32_000, "validation_share": 0.005, "test_share": 0.005}
_MILLION = 1e6
_HOUR_S = 3600
# Made in one process; the others by shard, so by as many machines as there are. The
# tokenizer is trained on a sample, whatever the size.
_WHOLE = ("kept", "documents", "dataset")
_NAMES = tuple(name for name in pipeline.WITH_STEPS if name != "tokenizer")
_BY_CHUNK_SHARD = ("chunks", "embeddings", "neighbours")
_PER_SEARCH = ("searches",)  # cost grows with the shards of the index
_GIVEN_UP = tuple(step for steps in pipeline.STEPS.values() for step in steps)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `growth`."""
    command.add_argument("--corpus", type=Path, required=True, help="folder of files")
    command.add_argument("--work", type=Path, required=True, help="for the databases")
    command.add_argument("--files", type=_numbers, required=True, help="as 1,3,9")
    command.add_argument(
        "--index_shard_rows", type=int, default=DataConfig().index_shard_rows
    )
    command.add_argument("--plan", type=_numbers, default=[10**8, 28 * 10**9])
    command.add_argument("--cores", type=int, default=64, help="of a planned machine")
    command.add_argument("--memory_gb", type=int, default=256, help="of such a machine")


def run(args: argparse.Namespace) -> Result:
    """Gives costs per million chunks of each stage at each size, then the plan."""
    settings: dict = _SETTINGS | {"index_shard_rows": args.index_shard_rows}
    databases = []
    for count in args.files:
        databases.append(_built(args, count, settings))
        settings["tokenizer"] = databases[0] / "tokenizer" / "all" / "tokenizer.model"
    measured = [measure(folder) for folder in databases]
    rows = growth_rows(measured)
    machine = {"cores": args.cores, "memory_gb": args.memory_gb}
    rows += [plan_row(measured[-1], chunks, **machine) for chunks in args.plan]
    conditions = describe_machine(("numpy", "scann", "jax", "sentencepiece")) | {
        "corpus": args.corpus.name,
        "index shard rows": args.index_shard_rows,
        "planned machine": f"{args.cores} cores, {args.memory_gb} GB",
    }
    return Result(name="growth", conditions=conditions, rows=rows, notes=[])


def _built(args: argparse.Namespace, count: int, settings: dict) -> Path:
    """Builds the database of the first `count` files, or goes on with it; gives its folder."""
    files = sorted(path for path in args.corpus.iterdir() if path.is_file())
    if not 0 < count <= len(files):
        raise ValueError(f"--files: {args.corpus} has {len(files)} files, not {count}")
    folder = args.work / f"files-{count}"
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    for file in files[:count]:
        link = folder / "corpus" / file.name
        if not link.is_symlink():
            link.symlink_to(file.resolve())
    settings = {**settings, "corpus": folder / "corpus"}
    for stage in pipeline.STAGES:
        progress(f"{count} files: {stage}")
        command = [
            *(sys.executable, "-m", "experiments.build_database"),
            f"--config={_CONFIG}",
            f"--database={folder / 'database'}",
            f"--stage={stage}",
            *(f"--config.data.{name}={value}" for name, value in settings.items()),
        ]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise ValueError(f"the stage {stage} of {folder} failed: see above")
    return folder / "database"


def _numbers(text: str) -> list[int]:
    return [int(float(part)) for part in text.split(",")]


@dataclasses.dataclass(frozen=True)
class Stage:
    """The costs of a stage of a build, all shards together.

    Attributes:
        cpu_s: for a million chunks; for `searches` also for one shard of the index.
        size_bytes: for a chunk, of the files that it leaves.
        peak_memory_bytes: of the largest process.
    """

    cpu_s: float
    size_bytes: float
    peak_memory_bytes: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """The size of a database and the costs of its stages by name."""

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
            size_bytes=sum(cost.size_bytes for cost in of_shards) / searches,
            peak_memory_bytes=max(cost.peak_memory_bytes for cost in of_shards),
        )
    return Measured(chunks, index_shards, stages)


def growth_rows(measured: Sequence[Measured]) -> list[Row]:
    """Gives a part for each stage and a row for each size; last, its ratio to the smallest."""
    rows: list[Row] = []
    for name in _NAMES:
        first = measured[0].stages.get(name)
        for size in measured:
            stage = size.stages.get(name)
            if stage is None:
                continue
            row: Row = {
                "part": name,
                "chunks": size.chunks,
                "index shards": size.index_shards,
                "CPU s a million": significant(stage.cpu_s, 3),
                "bytes a chunk": round(stage.size_bytes),
                "peak GB": round(stage.peak_memory_bytes / 1e9, 2),
            }
            if first is not None:
                row["smallest CPU s a million"] = significant(first.cpu_s, 3)
                row["times the smallest"] = round(stage.cpu_s / first.cpu_s, 2)
            rows.append(row)
    return rows


def plan_row(largest: Measured, chunks: int, *, cores: int, memory_gb: int) -> Row:
    """Plans a size by the costs of the largest that was built, with index shards as large.

    Machines hold the index in half of their memory; hours are those of the stages that are
    made shard by shard.

    Args:
        cores, memory_gb: of a machine; a core is taken to be as fast as one here.
    """
    shards = max(1, round(chunks * largest.index_shards / largest.chunks))
    core_hours = {
        name: largest.stages[name].cpu_s
        * (chunks / _MILLION)
        * (shards if name in _PER_SEARCH else 1)
        / _HOUR_S
        for name in _NAMES
        if name in largest.stages
    }
    kept = [stage for name, stage in largest.stages.items() if name not in _GIVEN_UP]
    index_size_bytes = largest.stages["index"].size_bytes * chunks
    machines = math.ceil(index_size_bytes / (memory_gb * 1e9 / 2))
    by_shard = sum(hours for name, hours in core_hours.items() if name not in _WHOLE)
    row: Row = {
        "part": "plan",
        "chunks": chunks,
        "index shards": shards,
        "TB on disk": significant(sum(s.size_bytes for s in kept) * chunks / 1e12),
        "TB of index": significant(index_size_bytes / 1e12),
        "machines": machines,
        "core hours in all": significant(sum(core_hours.values())),
        "hours": significant(by_shard / (cores * machines)),
    }
    return row | {f"{name} core h": significant(h) for name, h in core_hours.items()}


def _rows(shard: Path) -> int:
    """Counts the chunks of a shard, from the header of its array."""
    return len(np.load(shard / "tokens.npy", mmap_mode="r"))
