"""Several indexes searched as one: the shards of a database, and what was added to it.

ids.npy   (T,) int64, ascending: the chunk that each row of the index stands for
index/    the index itself
"""

import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from data_pipeline.index import checks, exact, kinds, recall
from data_pipeline.index.protocol import Index
from data_pipeline.storage.costs import SearchSpeed, ShardCost
from data_pipeline.storage.files import read_json
from data_pipeline.storage.mapped_arrays import open_array

_RECALLS = ("recall@2", "recall@10")
MAX_QUERIES = 4000  # to tune and to measure an index with


@dataclasses.dataclass(frozen=True)
class Shard:
    """An index whose rows are chunks of a database."""

    ids_T: Int64[np.ndarray, " T"]
    index: Index

    def search(self, queries_QW, k: int):
        """Finds the nearest chunks: `Index.search` with chunk ids instead of rows."""
        rows_QN, distances_QN = self.index.search(queries_QW, k)
        ids_QN = np.where(rows_QN < 0, -1, self.ids_T[np.maximum(rows_QN, 0)])
        return ids_QN, distances_QN

    def save(self, folder: Path) -> None:
        """Writes both files into a folder that is there."""
        np.save(folder / "ids.npy", self.ids_T, allow_pickle=False)
        self.index.save(folder / "index")


def build_shard(
    ids_T: Int64[np.ndarray, " T"],
    vectors_TW: Float[np.ndarray, "T W"],
    kind: str,
    *,
    recall_target: float,
    queries_QW: Float[np.ndarray, "Q W"],
    scratch: Path | None = None,
) -> tuple[Shard, dict, SearchSpeed]:
    """Indexes the vectors of chunks, and measures recall and speed.

    Args:
        kind, recall_target, scratch: as `build_index`'s.
        queries_QW: from outside the database. Half of them tune the index, the other half
            measure it; without any, the first vectors do.
    Returns:
        The shard, its facts (kind, rows, queries, recall@2 and recall@10), which are the
        same for the same vectors, and its speed.
    """
    built = kinds.build_index(
        vectors_TW,
        kind,
        recall_target=recall_target,
        queries_QW=queries_QW[::2],
        scratch=scratch,
    )
    queries_QW = queries_QW[1::2]
    if not len(queries_QW):
        queries_QW = vectors_TW[: MAX_QUERIES // 2]
    facts = {
        "kind": type(built).__name__,
        "rows": len(vectors_TW),
        "queries": len(queries_QW),
    }
    _, nearest_QN = exact.ExactIndex(vectors_TW).search(queries_QW, 10)
    for k in (2, 10):
        start_s = time.perf_counter()
        found_QN, _ = built.search(queries_QW, k)
        took_s = time.perf_counter() - start_s
        if k <= len(vectors_TW):
            facts[f"recall@{k}"] = recall.recall_of(
                found_QN, nearest_QN, vectors_TW, queries_QW
            )
    return Shard(ids_T, built), facts, SearchSpeed(round(len(queries_QW) / took_s, 1))


def read_facts(folder: Path) -> dict:
    """Facts of all shards in a folder together."""
    paths = sorted(folder.glob("*/facts.json"))
    return combined_facts([read_json(path) or {} for path in paths])


def queries_per_s(each: Sequence[ShardCost]) -> float | None:
    """The speed of shards that are asked one after the other; None if one has none."""
    if not each or not all(cost.queries_per_s for cost in each):
        return None
    return round(1 / sum(1 / cost.queries_per_s for cost in each), 1)


def in_words(facts: Mapping, queries_per_s: float | None) -> str:
    """Facts in words: 'recall@2 0.975, recall@10 0.981, 4,300 queries/s'."""
    recall = [f"{name} {facts[name]:.3f}" for name in _RECALLS if name in facts]
    speed = [f"{queries_per_s:,.0f} queries/s"] if queries_per_s else []
    return ", ".join([*recall, *speed]) or "too few vectors to measure it"


def split_rows(sizes: Sequence[int], max_rows: int) -> list[range]:
    """Consecutive rows, for each index as many as it may have.

    Whole shards as long as they fit; one that is larger than an index is cut.

    Args:
        sizes: rows of each shard, in order.
    """
    parts, start, stop = [], 0, 0
    for size in sizes:
        if start < stop and stop + size - start > max_rows:
            parts.append(range(start, stop))
            start = stop
        stop += size
        while stop - start > max_rows:
            parts.append(range(start, start + max_rows))
            start += max_rows
    return [*parts, range(start, stop)]


def combined_facts(each: Sequence[dict]) -> dict:
    """Facts of shards together: of recall the mean over rows, of queries the fewest."""
    rows = sum(facts["rows"] for facts in each)
    recall = {
        name: sum(facts[name] * facts["rows"] for facts in each) / rows
        for name in _RECALLS
        if rows and all(name in facts for facts in each)
    }
    return {
        "kind": "+".join(sorted({facts["kind"] for facts in each})),
        "shards": len(each),
        "rows": rows,
        "queries": min(facts["queries"] for facts in each),
        **recall,
    }


def load_shard(folder: Path, width: int, num_chunks: int) -> Shard:
    """Opens a saved shard over some of `num_chunks` chunks.

    Raises:
        ValueError: naming a file that is damaged, or not of these chunks and this width.
    """
    ids_T = open_array(folder / "ids.npy")
    index = kinds.load_index(folder / "index")
    if ids_T.shape != (index.size,) or index.width != width:
        raise ValueError(
            f"{folder / 'ids.npy'} names {ids_T.shape} chunks of width {width} for "
            f"{index.size} rows of width {index.width}; build it again"
        )
    ascend = ids_T.dtype == np.int64 and (np.diff(ids_T, prepend=-1) > 0).all()
    if len(ids_T) and not (ascend and ids_T[-1] < num_chunks):
        raise ValueError(f"{folder / 'ids.npy'} names chunks that are not there")
    return Shard(ids_T, index)


class ShardedIndex:
    """The union of shards; satisfies `Searchable`, with chunk ids for rows.

    Shards are searched with equal effort, each on a thread of its own, and merged exactly:
    with exact shards the result is bit for bit that of one exact index over all.
    """

    def __init__(self, shards: Sequence[Shard], width: int):
        """Takes the shards; empty ones are left out, for no index holds nothing."""
        self.shards = [shard for shard in shards if len(shard.ids_T)]
        self.width = width
        threads = min(len(self.shards), os.cpu_count() or 1)
        self._pool = (
            concurrent.futures.ThreadPoolExecutor(threads, "shard")
            if threads > 1
            else None
        )

    @property
    def ids(self) -> Int64[np.ndarray, " T"]:
        """Chunks of all rows, shard by shard."""
        empty = np.zeros(0, np.int64)
        return np.concatenate([empty, *(shard.ids_T for shard in self.shards)])

    @property
    def size(self) -> int:
        """Rows of all shards."""
        return sum(len(shard.ids_T) for shard in self.shards)

    def search(
        self, queries_QW: Float[np.ndarray, "Q W"], k: int
    ) -> tuple[Int64[np.ndarray, "Q N"], Float[np.ndarray, "Q N"]]:
        """Finds the nearest chunks; equal distances are ordered by chunk id."""
        checks.check_queries(queries_QW, k, self.width)
        each = self._pool.map if self._pool else map
        found = list(each(lambda shard: shard.search(queries_QW, k), self.shards))
        return merge(found or [_nothing(len(queries_QW))], k)


def _nothing(num_queries: int):
    return np.zeros((num_queries, 0), np.int64), np.zeros((num_queries, 0), np.float32)


def merge(found: Sequence[tuple[np.ndarray, np.ndarray]], k: int):
    """The k nearest of several answers to the same queries.

    Args:
        found: ids (Q, N) and distances (Q, N) of each; -1 at infinity where there is
            none. No id is in two of them.
    Returns:
        (Q, k) of both, nearest first, equal distances by id.
    """
    ids_QN = np.concatenate([ids for ids, _ in found], axis=1)
    distances_QN = np.concatenate([distances for _, distances in found], axis=1)
    order_QN = np.lexsort((ids_QN, distances_QN))[:, :k]
    padding = ((0, 0), (0, max(0, k - ids_QN.shape[1])))
    return (
        np.pad(np.take_along_axis(ids_QN, order_QN, 1), padding, constant_values=-1),
        np.pad(
            np.take_along_axis(distances_QN, order_QN, 1),
            padding,
            constant_values=np.inf,
        ),
    )
