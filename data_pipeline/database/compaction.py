"""Takes deleted text off the disk and merges what was added.

Rows and ids of the build stay as they are: in its shards a deleted document leaves an empty
row and chunks of padding with zero vectors, which no index holds. What was added is written
anew as one delta without what was deleted of it.
"""

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from data_pipeline.database import updates, version_paths, versions
from data_pipeline.embedding import chunk_vectors
from data_pipeline.index import lexical
from data_pipeline.storage import files
from data_pipeline.storage.mapped_arrays import open_array
from data_pipeline.text.chunks import ARRAYS, ChunkTable

if TYPE_CHECKING:
    from data_pipeline.database.database import Database


def compact(database: "Database") -> int:
    """See `Database.compact`."""
    with versions.sole_writer(database.folder):
        database.refresh()
        state, number = database.state, updates.next_number(database.folder)
        replaced = _replace_shards(database, f"compacted/{versions.name_of(number)}")
        deltas = _merge_deltas(database, versions.name_of(number))
        if replaced or deltas != state.deltas:
            num_built = sum(len(t) for t in _document_rows(database))
            new = dataclasses.replace(
                state,
                number=number,
                deltas=deltas,
                deleted_D=state.deleted_D[state.deleted_D < num_built],
                replaced={**state.replaced, **replaced},
            )
            updates.show(database, new)
        shutil.rmtree(database.folder / "dataset", ignore_errors=True)  # holds the text
        versions.forget_before(database.folder, database.version)
        return database.version


def _document_rows(database: "Database") -> list[np.ndarray]:
    """Rows of the documents of each shard of the build's training split."""
    paths = version_paths.Layout(
        database.folder, dataclasses.replace(database.state, deltas=())
    ).document_tables("train")
    return [
        pa.parquet.read_table(path, columns=["row"]).column("row").to_numpy()
        for path in paths
    ]


def _replace_shards(database: "Database", into: str) -> dict[str, str]:
    """Writes shards that hold deleted text again; what each of them stands in for."""
    paths = version_paths.Layout(database.folder, database.state)
    dead_ids: list[np.ndarray] = []
    replaced: dict[str, str] = {}
    table = database.chunks()
    names = paths.built_shards("train")
    for number, (name, rows) in enumerate(
        zip(names, _document_rows(database), strict=True)
    ):
        ids = np.asarray(table.rows_of_shard(number))
        documents = table.take("documents", ids)
        dead = database.state.is_deleted(documents)
        dead &= table.take("lengths", ids) > 0  # not emptied before
        if not dead.any():
            continue
        gone = database.state.is_deleted(rows)
        source = {
            stage: paths.built(f"{stage}/{name}") for stage in ("chunks", "embeddings")
        }
        text = paths.built(f"documents/all/{name}.parquet")
        files.make_folder(
            database.folder / into / name,
            functools.partial(_empty, source, text, dead, gone),
        )
        replaced |= {f"{stage}/{name}": f"{into}/{name}" for stage in source}
        replaced[f"documents/all/{name}.parquet"] = f"{into}/{name}/documents.parquet"
        dead_ids.append(ids[dead])
    if dead_ids:
        replaced |= _replace_indexes(database, np.concatenate(dead_ids), into)
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
    database: "Database", dead_ids: np.ndarray, into: str
) -> dict[str, str]:
    """Builds indexes that hold deleted chunks again, without them."""
    replaced = {}
    num_built = database.num_shards - len(database.state.deltas)
    for number in range(num_built):
        ids_T = database.index_of((number,)).ids
        kept = ids_T[~np.isin(ids_T, dead_ids)]
        if len(kept) == len(ids_T):
            continue
        name = f"{number:05d}"
        texts = lexical.texts_of(database.chunks(), kept, database.tokenizer)
        vectors_TW = database.vectors(kept)
        files.make_folder(
            database.folder / into / f"index-{name}",
            functools.partial(updates.write_index, database, kept, texts, vectors_TW),
        )
        replaced[f"index/{name}"] = f"{into}/index-{name}"
        if database.has_words:
            replaced[f"lexical/{name}"] = f"{into}/index-{name}/lexical"
    return replaced


def _merge_deltas(database: "Database", name: str) -> tuple[str, ...]:
    """One delta of all documents that were added and are still there; its name."""
    folders = version_paths.Layout(database.folder, database.state).deltas()
    if not folders:
        return ()
    documents = pa.concat_tables(
        [pa.parquet.read_table(folder / "documents.parquet") for folder in folders]
    )
    rows = documents.column("row").to_numpy()
    there = ~database.state.is_deleted(rows)
    if there.all() and len(folders) == 1:
        return database.state.deltas
    if not there.any():
        return ()
    kept = documents.filter(pa.array(there))
    old_rows, new_rows = rows[there], rows[0] + np.arange(there.sum())
    place = kept.schema.get_field_index("row")
    kept = kept.set_column(place, "row", pa.array(new_rows))
    table = ChunkTable(folders)
    ids = np.flatnonzero(np.isin(table.column("documents"), old_rows))
    first_id = len(database.chunks()) - len(table)

    def write_delta(folder: Path) -> None:
        """As `updates` does, but nothing is tokenised or embedded again."""
        pyarrow.parquet.write_table(
            kept, folder / "documents.parquet", compression="zstd"
        )
        for column in ARRAYS:
            array = table.take(column, ids)
            if column == "documents":
                array = new_rows[np.searchsorted(old_rows, array)]
            np.save(folder / f"{column}.npy", array, allow_pickle=False)
        vectors_TW = database.vectors(first_id + ids)
        np.save(folder / "vectors.npy", vectors_TW, allow_pickle=False)
        written = ChunkTable([folder])
        has_text_T = written.has_text(range(len(ids)))
        updates.write_index(
            database,
            first_id + np.flatnonzero(has_text_T),
            lexical.texts_of(written, np.flatnonzero(has_text_T), database.tokenizer),
            vectors_TW[has_text_T],
            folder,
        )

    files.make_folder(database.folder / "deltas" / name, write_delta)
    return (name,)
