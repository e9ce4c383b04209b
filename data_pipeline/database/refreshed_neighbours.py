"""Brings precomputed neighbours up to date with a version, where anything changed.

Three kinds of chunks need work: what was added is searched for as a build does; a chunk
that has lost a candidate is searched for again; every other one is compared with what was
added, and with that alone.
"""

import functools

import numpy as np

from data_pipeline.database import versions
from data_pipeline.database.neighbours import (
    NeighbourTable,
    exact_neighbours,
    write_changes,
)
from data_pipeline.database.search import allowed_for
from data_pipeline.database.snapshot import Snapshot
from data_pipeline.embedding import chunk_vectors
from data_pipeline.index.sharded import ShardedIndex, merge
from data_pipeline.storage import files
from data_pipeline.storage.files import read_json
from data_pipeline.storage.progress import Progress
from data_pipeline.text.copies.deduplicate import SPLITS


def refresh_neighbours(snapshot: Snapshot) -> None:
    """Computes what changed in a version since the build, for the build under way.

    Does nothing if it is there already.
    """
    folder = snapshot.paths.changed_neighbours
    todo = [
        split
        for split in SPLITS
        if len(snapshot.chunks(split))
        and read_json(folder / split / "shard.json") is None
    ]
    if snapshot.version == 0 or not todo:
        return
    total = sum(len(snapshot.chunks(split)) for split in todo)
    with (
        versions.sole_writer(snapshot.folder, in_build=True),
        Progress("changed neighbours", total, "chunks") as progress,
    ):
        for split in todo:
            changed = _changed(snapshot, split, progress)
            files.make_folder(folder / split, functools.partial(write_changes, changed))


def _changed(snapshot: Snapshot, split: str, progress: Progress):
    """Rows, ids and distances of all chunks of a split that have other neighbours now."""
    built = NeighbourTable(snapshot.paths.shards("neighbours", split))
    table = snapshot.chunks(split)
    parts = []
    for number, shard in enumerate(snapshot.paths.shards("embeddings", split)):
        rows = np.asarray(table.rows_of_shard(number), np.int64)
        vectors_QW = chunk_vectors.vectors(shard)
        before = built.rows(rows)
        now = _neighbours(snapshot, split, rows, vectors_QW, before)
        differs = (now[0] != before[0]).any(axis=1)
        parts.append((rows[differs], now[0][differs], now[1][differs]))
        progress.advance(len(rows))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _neighbours(snapshot: Snapshot, split: str, rows, vectors_QW, before):
    """Ids and distances of chunks, given those before (none for what was added)."""
    ids_QN, distances_QN = (array.copy() for array in before)
    num_neighbours, document_of = ids_QN.shape[1], snapshot.document_of_chunk
    gone = snapshot.state.is_deleted(document_of[np.maximum(ids_QN, 0)]) & (ids_QN >= 0)
    is_short = ids_QN[:, -1] < 0  # new, or there was nothing more to find
    of_rows = snapshot.chunks(split).take("documents", rows)
    dead = snapshot.state.is_deleted(
        of_rows, split
    )  # and maybe without a vector by now
    again = (gone.any(axis=1) | is_short) & ~dead
    ids_QN[again], distances_QN[again] = _search(
        snapshot,
        snapshot.index(),
        split,
        rows[again],
        vectors_QW[again],
        num_neighbours,
    )
    if not (again | dead).all():
        kept = np.flatnonzero(~(again | dead))
        found = _search(
            snapshot,
            _added(snapshot),
            split,
            rows[kept],
            vectors_QW[kept],
            num_neighbours,
        )
        old = ids_QN[kept], distances_QN[kept]
        ids_QN[kept], distances_QN[kept] = merge([old, found], num_neighbours)
    ids_QN[dead], distances_QN[dead] = -1, np.inf
    return ids_QN, distances_QN


def _added(snapshot: Snapshot) -> ShardedIndex:
    """The index of what was added alone: its last shards."""
    last = snapshot.num_shards
    return snapshot.index(tuple(range(last - len(snapshot.state.deltas), last)))


def _search(snapshot, index, split, rows, vectors_QW, num_neighbours):
    allowed = allowed_for(snapshot, split, rows)
    return exact_neighbours(
        index, vectors_QW, num_neighbours, allowed, snapshot.vectors
    )
