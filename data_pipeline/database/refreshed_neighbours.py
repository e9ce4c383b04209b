"""Brings precomputed neighbours up to date with a version, where anything changed.

    versions/000003-neighbours/SPLIT/   rows.npy, ids.npy and distances.npy of the chunks
                                        whose neighbours are not the build's

Three kinds of chunks need work: what was added is searched for as a build does; a chunk
that has lost a candidate is searched for again; every other one is compared with what was
added, and with that alone.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.database import versions
from data_pipeline.database.neighbours import NeighbourTable, exact_neighbours
from data_pipeline.embedding import chunk_vectors
from data_pipeline.index.sharded import ShardedIndex, merge
from data_pipeline.storage import files
from data_pipeline.storage.files import read_json
from data_pipeline.storage.progress import Progress

if TYPE_CHECKING:
    from data_pipeline.database.database import Database

_ARRAYS = ("rows", "ids", "distances")
_SPLITS = ("train", "validation", "test")


def neighbours_of(database: "Database", split: str) -> NeighbourTable:
    """The neighbours of a split's chunks in the version that is shown.

    Raises:
        ValueError: if they are not there.
    """
    built = NeighbourTable(database.shards("neighbours", split))
    if database.version == 0 or not len(built):
        return built
    folder = _folder(database) / split
    if read_json(folder / "shard.json") is None:
        raise ValueError(
            f"the neighbours of version {database.version} of {database.folder} are not "
            "computed yet: run the build again, it computes what changed"
        )
    arrays = [np.load(folder / f"{name}.npy") for name in _ARRAYS]
    return built.patched(len(database.chunks(split)), *arrays)


def refresh_neighbours(database: "Database") -> None:
    """Computes what changed in the version that is shown, for the build under way.

    Nothing, if it is there.
    """
    todo = [
        split
        for split in _SPLITS
        if len(database.chunks(split))
        and read_json(_folder(database) / split / "shard.json") is None
    ]
    if database.version == 0 or not todo:
        return
    total = sum(len(database.chunks(split)) for split in todo)
    with (
        versions.sole_writer(database.folder, in_build=True),
        Progress("changed neighbours", total, "chunks") as progress,
    ):
        for split in todo:
            write = functools.partial(_write, _changed(database, split, progress))
            files.make_folder(_folder(database) / split, write)


def _write(changed: tuple[np.ndarray, ...], folder: Path) -> None:
    for name, array in zip(_ARRAYS, changed, strict=True):
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def _folder(database: "Database") -> Path:
    name = f"{versions.name_of(database.version)}-neighbours"
    return database.folder / "versions" / name


def _changed(database: "Database", split: str, progress: Progress):
    """Rows, ids and distances of all chunks of a split that have other neighbours now."""
    built = NeighbourTable(database.shards("neighbours", split))
    table = database.chunks(split)
    parts = []
    for number, shard in enumerate(database.shards("embeddings", split)):
        rows = np.asarray(table.rows_of_shard(number), np.int64)
        vectors_QW = chunk_vectors.vectors(shard)
        before = built.rows(rows)
        now = _neighbours(database, split, rows, vectors_QW, before)
        differs = (now[0] != before[0]).any(axis=1)
        parts.append((rows[differs], now[0][differs], now[1][differs]))
        progress.advance(len(rows))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _neighbours(database: "Database", split: str, rows, vectors_QW, before):
    """Ids and distances of chunks, given those before (none for what was added)."""
    ids_QN, distances_QN = (array.copy() for array in before)
    num_neighbours, document_of = ids_QN.shape[1], database.document_of_chunk
    gone = database.state.is_deleted(document_of[np.maximum(ids_QN, 0)]) & (ids_QN >= 0)
    is_short = ids_QN[:, -1] < 0  # new, or there was nothing more to find
    again = gone.any(axis=1) | is_short
    ids_QN[again], distances_QN[again] = _search(
        database, database.index, split, rows[again], vectors_QW[again], num_neighbours
    )
    if not again.all():
        kept = np.flatnonzero(~again)
        found = _search(
            database,
            _added(database),
            split,
            rows[kept],
            vectors_QW[kept],
            num_neighbours,
        )
        old = ids_QN[kept], distances_QN[kept]
        ids_QN[kept], distances_QN[kept] = merge([old, found], num_neighbours)
    if split == "train":
        dead = database.state.is_deleted(document_of[rows])
        ids_QN[dead], distances_QN[dead] = -1, np.inf
    return ids_QN, distances_QN


def _added(database: "Database") -> ShardedIndex:
    """Of what was added alone: the last shards of the index."""
    last = database.num_shards
    return database.index_of(tuple(range(last - len(database.state.deltas), last)))


def _search(database, index, split, rows, vectors_QW, num_neighbours):
    allowed = database.allowed_for(split, rows)
    return exact_neighbours(
        index, vectors_QW, num_neighbours, allowed, database.vectors
    )
