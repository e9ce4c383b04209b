"""Facts of a database: sizes, recall, duplicates, and how near its neighbours are."""

from pathlib import Path

import numpy as np

from data_pipeline.database import Database, Snapshot, versions
from data_pipeline.database.results import Found
from data_pipeline.index import sharded
from experiments.report import plots

_NEAR_DUPLICATE = 0.05  # squared distance of unit vectors: a cosine of 0.975
# Folders of a database, in the order in which a build and updates fill them.
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
    rows = opened.snapshot.document_of_chunk[[chunk_id]]
    if opened.snapshot.state.is_deleted(rows)[0]:
        raise ValueError(f"the document of chunk {chunk_id} was deleted")
    return opened.found(chunk_id)


def facts(opened: Snapshot) -> list[tuple[str, str]]:
    """Names and values, to be read by people."""
    manifest, table, index = (
        opened.manifest,
        opened.documents(),
        opened.manifest["index"],
    )
    is_there = ~opened.state.is_deleted(np.arange(table.num_rows))
    there, gone = is_there.sum(), (~is_there).sum()
    size_bytes = np.asarray(table.column("size_bytes").to_numpy())[is_there].sum()
    vocabulary = f"a vocabulary of {manifest['vocab_size']:,}"
    shards = f"{opened.num_shards} shard{'s' * (opened.num_shards != 1)}"
    recall = sharded.in_words(index, index.get("queries_per_s"))
    validation, test = (manifest["chunks"][split] for split in ("validation", "test"))
    rows = [
        ("version", f"{opened.version} of {versions.numbers(opened.folder)}"),
        ("documents", f"{there:,} ({gone:,} deleted)"),
        ("text", f"{size_bytes / 1e6:,.1f} MB"),
        ("chunks that can be found", f"{len(opened.searchable):,}"),
        ("chunk", f"{opened.chunk_len} tokens of {vocabulary}"),
        ("embedder", f"{manifest['embedder']}, {manifest['embedding_width']} wide"),
        ("index", f"{index['kind']}, {shards}: {recall} when it was built"),
        ("held out", f"{validation:,} chunks for validation, {test:,} chunks for test"),
    ]
    distances_T = _nearest_distances(opened)
    if len(distances_T):
        share = np.mean(distances_T < _NEAR_DUPLICATE)
        quartiles = np.quantile(distances_T, [0.05, 0.5, 0.95])
        spread = " / ".join(f"{value:.2f}" for value in quartiles)
        rows += [
            ("near-duplicate chunks", f"{share:.1%} (distance < {_NEAR_DUPLICATE})"),
            ("distance, 5 / 50 / 95 %", spread),
        ]
    for stage in _STAGES:
        files = [p for p in (opened.folder / stage).rglob("*") if p.is_file()]
        size_bytes = sum(path.stat().st_size for path in files)
        if size_bytes:
            rows.append((f"on disk: {stage}", f"{size_bytes / 1e6:,.1f} MB"))
    return rows


def _nearest_distances(opened: Snapshot) -> np.ndarray:
    """Each chunk's distance to its nearest neighbour; none if not precomputed."""
    if not opened.paths.shards("neighbours", "train")[0].exists() or opened.version:
        return np.zeros(0, np.float32)
    table = opened.neighbours("train")
    distances_T = table.rows(np.arange(len(table)))[1][:, 0]
    return distances_T[np.isfinite(distances_T)]


def plot_distances(opened: Snapshot, path: Path) -> None:
    """Writes a histogram of the distances to the nearest neighbours, as PNG.

    Raises:
        ValueError: if the version that is shown has no precomputed neighbours.
    """
    distances_T = _nearest_distances(opened)
    if not len(distances_T):
        raise ValueError(
            f"version {opened.version} of {opened.folder} has no precomputed neighbours"
        )
    path.write_bytes(plots.png(plots.distances(distances_T)))
