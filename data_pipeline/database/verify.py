"""Checks every file of an open version, and makes a sample of it again from its text.

This takes long; what opening checks, which is quick, is `integrity.py`.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet

from data_pipeline.database.integrity import check_size, check_sum, described
from data_pipeline.database.snapshot import Snapshot
from data_pipeline.embedding import chunk_vectors
from data_pipeline.storage.files import read_json
from data_pipeline.storage.stage_record import read_stage
from data_pipeline.text import chunks

_SAME_COSINE = 0.999


def files(snapshot: Snapshot) -> Iterator[tuple[Path, str]]:
    """Checks every file; gives each with what is wrong with it, '' if nothing.

    Also the sequences, which are another version's perhaps, and the neighbours of the
    version.
    """
    for path, entry in described(snapshot.folder, snapshot.state):
        yield path, _problem(path, entry)
    yield from _files_of_sequences(snapshot.folder / "dataset")
    for path in snapshot.paths.changed_neighbours.glob("*/shard.json"):
        entries = read_json(path)
        if entries is None:
            yield path, f"{path} is damaged: remove {path.parent} and build again"
        for name, entry in (entries or {}).items():
            yield path.parent / name, _problem(path.parent / name, entry)


def _files_of_sequences(stage: Path) -> Iterator[tuple[Path, str]]:
    record = stage / "stage.json"
    try:
        made = read_stage(stage)
    except ValueError as error:
        yield record, str(error)
        return
    if made is None:  # never built, or given up by compacting
        if (stage / "all").exists():
            yield record, f"{record} is missing: restore it, or build again"
        return
    for shard, entries in made["files"].items():
        for name, entry in entries.items():
            yield stage / shard / name, _problem(stage / shard / name, entry)


def _problem(path: Path, entry: dict) -> str:
    try:
        check_size(path, entry)
        check_sum(path, entry)
    except ValueError as error:
        return str(error)
    return ""


def recompute(snapshot: Snapshot, seed: int) -> tuple[str, int, float]:
    """Makes one random block of a random shard again, from its text.

    Returns:
        The shard's name, how many chunks were compared, and the smallest cosine of a
        vector and the one made again: 1.0 if all are bit for bit the same. Another kind of
        processor rounds otherwise, and so does one text beside others: where every shard
        of the build was compacted, what is left of one is made again.
    Raises:
        ValueError: naming the shard and what differs; a vector, if its cosine is below 0.999.
    """
    rng = np.random.default_rng(seed)
    table = snapshot.chunks()
    shards = snapshot.paths.shards("chunks", "train")
    built = snapshot.folder / "chunks"  # bits depend on what was embedded together
    whole = [n for n, shard in enumerate(shards) if shard.parent == built]
    number = int(rng.choice(whole or len(shards)))
    rows = table.rows_of_shard(number)
    starts = np.arange(rows.start, rows.stop, chunk_vectors.TEXTS_AT_ONCE)
    start = int(rng.choice(starts))
    ids = np.arange(start, min(start + chunk_vectors.TEXTS_AT_ONCE, rows.stop))
    name = shards[number].relative_to(snapshot.folder).as_posix()
    _compare_text(snapshot, number, ids, name)
    tokens_TM = table.take("tokens", ids)
    again = chunk_vectors.embed_chunks(tokens_TM, snapshot.tokenizer, snapshot.embedder)
    there = ~snapshot.state.is_deleted(table.take("documents", ids))
    cosine = _least_cosine(again[there], snapshot.vectors(ids)[there])
    if cosine < _SAME_COSINE:
        raise ValueError(
            f"vectors of {name} are not what the embedder gives today (cosine {cosine:.4f})"
        )
    return name, len(ids), cosine


def _least_cosine(again_TW: np.ndarray, stored_TW: np.ndarray) -> float:
    """1.0 exactly if all are the same to the bit."""
    if np.array_equal(again_TW, stored_TW):
        return 1.0
    again_TW, stored_TW = again_TW.astype(np.float64), stored_TW.astype(np.float64)
    norms_T = np.linalg.norm(again_TW, axis=1) * np.linalg.norm(stored_TW, axis=1)
    products_T = np.einsum("TW,TW->T", again_TW, stored_TW)
    cosines_T = np.divide(products_T, norms_T, out=0 * norms_T, where=norms_T > 0)
    return min(float(cosines_T.min()), np.nextafter(1.0, 0.0))


def _compare_text(snapshot: Snapshot, shard: int, ids: np.ndarray, name: str) -> None:
    """Cuts the documents of chunks again."""
    table = snapshot.chunks()
    path = snapshot.paths.document_tables("train")[shard]
    documents = pyarrow.parquet.read_table(path, columns=["row", "text"])
    texts = dict(
        zip(
            documents.column("row").to_pylist(),
            documents.column("text").to_pylist(),
            strict=True,
        )
    )
    of_chunks = table.take("documents", ids)
    for row in np.unique(of_chunks[~snapshot.state.is_deleted(of_chunks)]):
        all_ids = np.flatnonzero(snapshot.document_of_chunk == row)
        cut = chunks.cut_document(
            texts[int(row)], snapshot.tokenizer, snapshot.chunk_len
        )
        for column, again in zip(("tokens", "lengths", "offsets"), cut, strict=True):
            if not np.array_equal(table.take(column, all_ids), again):
                raise ValueError(f"{column} of document row {row} in {name} differ")
