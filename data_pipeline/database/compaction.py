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

from data_pipeline.database import deltas, versions
from data_pipeline.database.snapshot import Snapshot
from data_pipeline.database.version_paths import VersionPaths
from data_pipeline.embedding import chunk_vectors
from data_pipeline.index import lexical
from data_pipeline.storage import files
from data_pipeline.storage.mapped_arrays import open_array
from data_pipeline.text.chunks import ARRAYS
from data_pipeline.text.copies.deduplicate import SPLITS

# What a build leaves while it is under way, and the sequences: all of it holds text.
_MADE_OF_TEXT = ("texts", "kept", "tables", "searches", "sequences", "dataset")


def compact(snapshot: Snapshot) -> Snapshot:
    """Compacts the version in force; gives up all older ones, and the sequences.

    Returns:
        The new version, which is in force; the one before, if there was nothing to do.
    """
    with versions.sole_writer(snapshot.folder):
        snapshot = snapshot.at()  # another process may have changed it
        folder, state = snapshot.folder, snapshot.state
        number = versions.next_number(folder)
        into = f"compacted/{versions.name_of(number)}"
        replaced = _replace_shards(snapshot, into)
        left = _merge_deltas(snapshot, versions.name_of(number))
        if replaced or left != state.deltas:
            paths = snapshot.paths
            built = [_documents(paths, name) for name in paths.built_shards("train")]
            num_built = sum(len(_rows(path)) for path in built)
            new = dataclasses.replace(
                state,
                number=number,
                deltas=left,
                # A merged delta holds no deleted document.
                deleted_D=state.deleted_D[state.deleted_D < num_built],
                replaced={**state.replaced, **replaced},
            )
            versions.publish(folder, new)
            snapshot = snapshot.at()
        for name in _MADE_OF_TEXT:
            shutil.rmtree(folder / name, ignore_errors=True)
        files.remove_temporaries(folder)
        versions.forget_before(folder, snapshot.version)
        return snapshot


def _documents(paths: VersionPaths, shard: str) -> Path:
    return paths.built(f"documents/all/{shard}.parquet")


def _rows(table: Path) -> np.ndarray:
    return pa.parquet.read_table(table, columns=["row"]).column("row").to_numpy()


def _replace_shards(snapshot: Snapshot, into: str) -> dict[str, str]:
    """Writes shards that hold deleted text again; what each of them stands in for."""
    replaced: dict[str, str] = {}
    for split in SPLITS:
        dead_ids = []
        for number, name in enumerate(snapshot.paths.built_shards(split)):
            ids, dead = _dead_chunks(snapshot, split, number)
            if dead.any():
                _replace_shard(snapshot, split, name, dead, into)
                replaced |= {
                    f"{stage}/{name}": f"{into}/{name}"
                    for stage in ("chunks", "embeddings")
                }
                table = f"{into}/{name}/documents.parquet"
                replaced[f"documents/all/{name}.parquet"] = table
                dead_ids.append(ids[dead])
        if split == "train" and dead_ids:
            replaced |= _replace_indexes(snapshot, np.concatenate(dead_ids), into)
    return replaced


def _dead_chunks(snapshot: Snapshot, split: str, number: int):
    """Ids of a shard's chunks, and which of them are deleted and not emptied yet."""
    table = snapshot.chunks(split)
    ids = np.asarray(table.rows_of_shard(number))
    dead = snapshot.state.is_deleted(table.take("documents", ids), split)
    return ids, dead & (table.take("lengths", ids) > 0)


def _replace_shard(
    snapshot: Snapshot, split: str, name: str, dead: np.ndarray, into: str
) -> None:
    paths = snapshot.paths
    text = _documents(paths, name)
    source = {
        stage: paths.built(f"{stage}/{name}") for stage in ("chunks", "embeddings")
    }
    gone = snapshot.state.is_deleted(_rows(text), split)
    files.make_folder(
        snapshot.folder / into / name,
        functools.partial(_empty, source, text, dead, gone),
    )


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
                deltas.write_index, snapshot.manifest, kept, texts, vectors_TW
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
    rows = deltas.read_documents(folders).column("row").to_numpy()
    there_D = ~snapshot.state.is_deleted(rows)
    if there_D.all() and len(folders) == 1:
        return snapshot.state.deltas
    if not there_D.any():
        return ()
    files.make_folder(
        snapshot.folder / "deltas" / name,
        functools.partial(deltas.write_merged, snapshot, 0, there_D),
    )
    return (name,)
