"""Costs of the shards of a database: each has a line in `costs.jsonl`.

No part of a build's contents: two builds of the same bytes take different times. What was
made again has a second line; the last one counts. A line that only names a stage says that
it was begun anew, maybe with other shards: what stands before counts no more.

Speeds are measured on the way and stand here too, for the same reason.
"""

import dataclasses
import json
import resource
import sys
import time
from pathlib import Path

FILE = "costs.jsonl"
_MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


@dataclasses.dataclass(frozen=True)
class SearchSpeed:
    """The measured speed of a shard of the index; the work that makes it reports it.

    Attributes:
        queries_per_s: that a search for 10 neighbours of many queries at once answers, on
            all cores of the process; 0 where there was nothing to ask.
    """

    queries_per_s: float


@dataclasses.dataclass(frozen=True)
class ShardCost:
    """The cost of one shard of a stage.

    Attributes:
        rows: that its work reported; 0 where the work counts none.
        cpu_s: of all threads of the process.
        wall_s: on whatever else the machine did.
        size_bytes: of its files.
        peak_memory_bytes: resident, of the process up to now, earlier shards included.
        queries_per_s: as in `SearchSpeed`; 0 where the work reported none.
    """

    stage: str
    shard: str
    rows: int
    cpu_s: float
    wall_s: float
    size_bytes: int
    peak_memory_bytes: int
    queries_per_s: float = 0.0


class Stopwatch:
    """Measures the cost of a shard, from when it is made."""

    def __init__(self) -> None:
        self._cpu_s = time.process_time()
        self._wall_s = time.perf_counter()

    def cost(
        self,
        stage: str,
        shard: str,
        rows: int,
        size_bytes: int,
        queries_per_s: float = 0.0,
    ) -> ShardCost:
        """Gives what was used since the start, with what is known besides."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return ShardCost(
            stage,
            shard,
            rows,
            round(time.process_time() - self._cpu_s, 4),
            round(time.perf_counter() - self._wall_s, 4),
            size_bytes,
            peak * _MAXRSS_UNIT_BYTES,
            queries_per_s,
        )


def append(database: Path, cost: ShardCost) -> None:
    """Adds the cost of a shard; one process at a time builds a database."""
    _add(database, dataclasses.asdict(cost))


def begin(database: Path, stage: str) -> None:
    """Notes that all shards of a stage are made anew."""
    _add(database, {"stage": stage})


def _add(database: Path, record: dict) -> None:
    """Adds a line after a line break, so that a line torn by a kill does not spoil it."""
    with (database / FILE).open("a") as file:
        file.write("\n" + json.dumps(record))


def read(database: Path) -> list[ShardCost]:
    """Gives the last cost of every shard; none for a database that has no such file.

    A line that a kill has torn is passed over.
    """
    try:
        lines = (database / FILE).read_text().splitlines()
    except FileNotFoundError:
        return []
    found: dict[tuple[str, str], ShardCost] = {}
    for line in lines:
        try:
            record = json.loads(line)
            if list(record) == ["stage"]:
                stage = record["stage"]
                found = {key: cost for key, cost in found.items() if key[0] != stage}
                continue
            cost = ShardCost(**record)
        except (json.JSONDecodeError, TypeError):
            continue
        found[cost.stage, cost.shard] = cost
    return list(found.values())
