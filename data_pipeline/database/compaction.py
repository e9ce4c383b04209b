"""Takes deleted text off the disk and merges what was added.

Rows and ids of the build stay as they are: in its shards a deleted document leaves an empty
row and chunks of padding with zero vectors, which no index holds. What was added is written
anew as one delta without what was deleted of it.

Letters here: D deleted documents.
"""

import dataclasses
import functools
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from data_pipeline.database import updates, versions
from data_pipeline.database.snapshot import Snapshot
from data_pipeline.embedding import chunk_vectors
from data_pipeline.index import lexical
from data_pipeline.storage import files
from data_pipeline.storage.mapped_arrays import open_array
from data_pipeline.text.chunks import ARRAYS, ChunkTable


def compact(snapshot: Snapshot) -> Snapshot:
    """Compacts the version in force; gives up all older ones, and the sequences.

    Returns:
        The new version, which is in force; the one before, if there was nothing to do.
    """
    with versions.sole_writer(snapshot.folder):
        snapshot = snapshot.at()  # another process may have changed it
        folder, state = snapshot.folder, snapshot.state
        number = versions.next_number(folder)
        replaced = _replace_shards(snapshot, f"compacted/{versions.name_of(number)}")
        deltas = _merge_deltas(snapshot, versions.name_of(number))
        if replaced or deltas != state.deltas:
            num_built = sum(map(len, _document_rows(snapshot)))
            new = dataclasses.replace(
                state,
                number=number,
                deltas=deltas,
                # A merged delta holds no deleted document.
                deleted_D=state.deleted_D[state.deleted_D < num_built],
                replaced={**state.replaced, **replaced},
            )
            versions.publish(folder, new)
            snapshot = snapshot.at()
        shutil.rmtree(folder / "dataset", ignore_errors=True)  # holds the text
        versions.forget_before(folder, snapshot.version)
        return snapshot


def _document_rows(snapshot: Snapshot) -> list[np.ndarray]:
    """Rows of the documents of each shard of the build's training split."""
    names = snapshot.paths.built_shards("train")
    paths = [snapshot.paths.built(f"documents/all/{name}.parquet") for name in names]
    return [
        pa.parquet.read_table(path, columns=["row"]).column("row").to_numpy()
        for path in paths
    ]


def _replace_shards(snapshot: Snapshot, into: str) -> dict[str, str]:
    """Writes shards that hold deleted text again; what each of them stands in for."""
    paths = snapshot.paths
    dead_ids: list[np.ndarray] = []
    replaced: dict[str, str] = {}
    table = snapshot.chunks()
    names = paths.built_shards("train")
    for number, (name, rows) in enumerate(
        zip(names, _document_rows(snapshot), strict=True)
    ):
        ids = np.asarray(table.rows_of_shard(number))
        documents = table.take("documents", ids)
        dead = snapshot.state.is_deleted(documents)
        dead &= table.take("lengths", ids) > 0  # not emptied before
        if not dead.any():
            continue
        gone = snapshot.state.is_deleted(rows)
        source = {
            stage: paths.built(f"{stage}/{name}") for stage in ("chunks", "embeddings")
        }
        text = paths.built(f"documents/all/{name}.parquet")
        files.make_folder(
            snapshot.folder / into / name,
            functools.partial(_empty, source, text, dead, gone),
        )
        replaced |= {f"{stage}/{name}": f"{into}/{name}" for stage in source}
        replaced[f"documents/all/{name}.parquet"] = f"{into}/{name}/documents.parquet"
        dead_ids.append(ids[dead])
    if dead_ids:
        replaced |= _replace_indexes(snapshot, np.concatenate(dead_ids), into)
    return replaced


def _empty(source: dict[str, Path], text: Path, dead, gone, folder: Path) -> None:
    """A shard of chunks, vectors and documents without what is deleted of it."""
    for name in ARRAYS:
        array = np.array(open_array(source["chunks"] / f"{name}.npy"))
        if name != "documents":
            array[dead] = 0
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    vectors_TW = np.array(chunk_vectors.vectors(source["embeddings"]))
    vectors_TW[dead] = 0
    np.save(folder / "vectors.npy", vectors_TW, allow_pickle=False)
    documents = pa.parquet.read_table(text)
    emptied = {
        name: pa.compute.if_else(pa.array(gone), "", documents.column(name))
        for name in ("id", "text", "title", "uri", "licence")
    }
    for name, column in emptied.items():
        place = documents.schema.get_field_index(name)
        documents = documents.set_column(place, name, column)
    pyarrow.parquet.write_table(
        documents, folder / "documents.parquet", compression="zstd"
    )


def _replace_indexes(
    snapshot: Snapshot, dead_ids: np.ndarray, into: str
) -> dict[str, str]:
    """Builds indexes that hold deleted chunks again, without them."""
    replaced = {}
    num_built = snapshot.num_shards - len(snapshot.state.deltas)
    for number in range(num_built):
        ids_T = snapshot.index((number,)).ids
        kept = ids_T[~np.isin(ids_T, dead_ids)]
        if len(kept) == len(ids_T):
            continue
        name = f"{number:05d}"
        texts = lexical.texts_of(snapshot.chunks(), kept, snapshot.tokenizer)
        vectors_TW = snapshot.vectors(kept)
        files.make_folder(
            snapshot.folder / into / f"index-{name}",
            functools.partial(
                updates.write_index, snapshot.manifest, kept, texts, vectors_TW
            ),
        )
        replaced[f"index/{name}"] = f"{into}/index-{name}"
        if "lexical" in snapshot.manifest["contents"]:
            replaced[f"lexical/{name}"] = f"{into}/index-{name}/lexical"
    return replaced


def _merge_deltas(snapshot: Snapshot, name: str) -> tuple[str, ...]:
    """One delta of all documents that were added and are still there; its name."""
    folders = snapshot.paths.deltas()
    if not folders:
        return ()
    documents = pa.concat_tables(
        [pa.parquet.read_table(folder / "documents.parquet") for folder in folders]
    )
    rows = documents.column("row").to_numpy()
    there = ~snapshot.state.is_deleted(rows)
    if there.all() and len(folders) == 1:
        return snapshot.state.deltas
    if not there.any():
        return ()
    kept = documents.filter(pa.array(there))
    old_rows, new_rows = rows[there], rows[0] + np.arange(there.sum())
    place = kept.schema.get_field_index("row")
    kept = kept.set_column(place, "row", pa.array(new_rows))
    table = ChunkTable(folders)
    ids = np.flatnonzero(np.isin(table.column("documents"), old_rows))
    first_id = len(snapshot.chunks()) - len(table)

    def write_delta(folder: Path) -> None:
        """Copies rows: nothing is tokenised or embedded again."""
        pyarrow.parquet.write_table(
            kept, folder / "documents.parquet", compression="zstd"
        )
        for column in ARRAYS:
            array = table.take(column, ids)
            if column == "documents":
                array = new_rows[np.searchsorted(old_rows, array)]
            np.save(folder / f"{column}.npy", array, allow_pickle=False)
        vectors_TW = snapshot.vectors(first_id + ids)
        np.save(folder / "vectors.npy", vectors_TW, allow_pickle=False)
        updates.write_index_of_delta(
            snapshot, ChunkTable([folder]), first_id, vectors_TW, folder
        )

    files.make_folder(snapshot.folder / "deltas" / name, write_delta)
    return (name,)
