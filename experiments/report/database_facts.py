"""What a database is made of, in words and as a plot."""

from pathlib import Path

import numpy as np

from data_pipeline.database import Database, Snapshot, versions
from data_pipeline.database.results import Found
from data_pipeline.index import sharded

_NEAR_DUPLICATE = 0.05  # squared distance of unit vectors: a cosine of 0.975
_STAGES = (
    "documents",
    "chunks",
    "embeddings",
    "index",
    "neighbours",
    "dataset",
    "deltas",
    "compacted",
)


def passage(opened: Database, chunk_id: int) -> Found:
    """The passage at a chunk.

    Raises:
        ValueError: if there is no such chunk, or it was deleted.
    """
    num_chunks = len(opened.snapshot.chunks())
    if not 0 <= chunk_id < num_chunks:
        raise ValueError(f"chunk ids go from 0 to {num_chunks - 1}, not {chunk_id}")
    row = opened.snapshot.document_of_chunk[chunk_id]
    if opened.snapshot.state.is_deleted(row):
        raise ValueError(f"the document of chunk {chunk_id} was deleted")
    return opened.found(chunk_id)


def facts(opened: Snapshot) -> list[tuple[str, str]]:
    """Names and values, to be read by people."""
    manifest, table = opened.manifest, opened.documents()
    deleted = len(opened.state.deleted_D)
    text_bytes = np.asarray(table.column("size_bytes").to_numpy())
    there = ~opened.state.is_deleted(np.arange(table.num_rows))
    rows = [
        ("version", f"{opened.version} of {versions.numbers(opened.folder)}"),
        ("documents", f"{table.num_rows - deleted:,} ({deleted:,} deleted)"),
        ("text", f"{text_bytes[there].sum() / 1e6:,.1f} MB"),
        ("chunks that can be found", f"{len(opened.searchable):,}"),
        (
            "chunk",
            f"{opened.chunk_len} tokens of a vocabulary of {manifest['vocab_size']:,}",
        ),
        ("embedder", f"{manifest['embedder']}, {manifest['embedding_width']} wide"),
        ("index", _index_in_words(opened)),
        ("held out", _held_out_in_words(opened)),
    ]
    distances_T = _nearest_distances(opened)
    if len(distances_T):
        share = np.mean(distances_T < _NEAR_DUPLICATE)
        rows.append(
            ("near-duplicate chunks", f"{share:.1%} (distance < {_NEAR_DUPLICATE})")
        )
        quartiles = np.quantile(distances_T, [0.05, 0.5, 0.95])
        words = " / ".join(f"{value:.2f}" for value in quartiles)
        rows.append(("distance, 5 / 50 / 95 %", words))
    for stage in _STAGES:
        size_bytes = _size_bytes(opened.folder / stage)
        if size_bytes:
            rows.append((f"on disk: {stage}", f"{size_bytes / 1e6:,.1f} MB"))
    return rows


def _index_in_words(opened: Snapshot) -> str:
    index = opened.manifest["index"]
    measured = sharded.in_words(index, index.get("queries_per_s"))
    shards = f"{opened.num_shards} shard{'s' * (opened.num_shards != 1)}"
    return f"{index['kind']}, {shards}: {measured} when it was built"


def _held_out_in_words(opened: Snapshot) -> str:
    chunks = opened.manifest["chunks"]
    splits = ("validation", "test")
    return ", ".join(f"{chunks[split]:,} chunks for {split}" for split in splits)


def _nearest_distances(opened: Snapshot) -> np.ndarray:
    """Of every chunk to its nearest neighbour in another document, if precomputed."""
    if not opened.paths.shards("neighbours", "train")[0].exists() or opened.version:
        return np.zeros(0, np.float32)
    table = opened.neighbours("train")
    distances_T = table.rows(np.arange(len(table)))[1][:, 0]
    return distances_T[np.isfinite(distances_T)]


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def plot_distances(opened: Snapshot, path: Path) -> None:
    """Writes a histogram of the distances to the nearest neighbours, as PNG.

    Raises:
        ValueError: if the version that is shown has no precomputed neighbours.
    """
    from experiments.report import plots

    distances_T = _nearest_distances(opened)
    if not len(distances_T):
        raise ValueError(
            f"version {opened.version} of {opened.folder} has no precomputed neighbours"
        )
    path.write_bytes(plots.png(plots.distances(distances_T)))
