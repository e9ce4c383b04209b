"""A delta: documents that were added, as a shard of every stage in one folder.

Each costs every search a little, and every opening some files. So a change that would make
one too many merges some of them first, as they are: rows and ids stay, and the version
before keeps its own. A merged one has at most `index_shard_rows` chunks.

Letters here: D documents, S deltas.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Bool, Float16

from data_pipeline.database.snapshot import Snapshot
from data_pipeline.embedding.chunk_vectors import embed_chunks
from data_pipeline.index import lexical, sharded
from data_pipeline.storage.files import make_folder, write_json
from data_pipeline.text import chunks
from data_pipeline.text.documents import Document, write_documents

MOST = 32  # that a version has before one is added


def merged(snapshot: Snapshot, name: str) -> tuple[str, ...]:
    """The deltas of a version, its last ones as one, made here, where there are many.

    Args:
        name: of the folder that a merged delta gets.
    """
    names = snapshot.state.deltas
    if len(names) < MOST:
        return names
    table, num_built = snapshot.chunks(), len(snapshot.paths.built_shards("train"))
    sizes_S = [
        len(table.rows_of_shard(num_built + place)) for place in range(len(names))
    ]
    from_S = np.cumsum(sizes_S[::-1])[::-1]
    # From the first that is no larger than all after it: a chunk is then merged again only
    # into what is at least twice as large, so a logarithm's number of times.
    may_be_first = 2 * np.array(sizes_S) <= from_S
    may_be_first &= from_S <= snapshot.manifest["settings"]["index_shard_rows"]
    if not may_be_first.any():
        return names
    first = int(np.argmax(may_be_first))
    make_folder(
        snapshot.folder / "deltas" / name,
        functools.partial(write_merged, snapshot, first, None),
    )
    return (*names[:first], name)


def write(snapshot: Snapshot, documents: Sequence[Document], folder: Path) -> None:
    """A shard of every stage, whose rows and ids follow what the database holds."""
    table, first_row = snapshot.chunks(), snapshot.documents().num_rows
    tokenizer = snapshot.tokenizer
    write_documents(folder / "documents.parquet", documents, first_row=first_row)
    texts = [document.text for document in documents]
    chunks.write_shard(texts, first_row, tokenizer, snapshot.chunk_len, folder)
    added = chunks.ChunkTable([folder])
    tokens_TM = added.take("tokens", np.arange(len(added)))
    vectors_TW = embed_chunks(tokens_TM, tokenizer, snapshot.embedder)
    np.save(folder / "vectors.npy", vectors_TW, allow_pickle=False)
    _write_index_of_delta(snapshot, added, len(table), vectors_TW, folder)


def write_merged(
    snapshot: Snapshot,
    first: int,
    there_D: Bool[np.ndarray, " D"] | None,
    folder: Path,
) -> None:
    """Writes a version's deltas from the first one on as one.

    Copies rows: nothing is tokenised or embedded again.

    Args:
        there_D: which of their documents are taken over, and are then numbered anew from
            the first one's row; all, as they are, if None.
    """
    folders = snapshot.paths.deltas()[first:]
    documents = read_documents(folders)
    old_rows = documents.column("row").to_numpy()
    first_row = old_rows[0]
    if there_D is not None:
        documents, old_rows = documents.filter(pa.array(there_D)), old_rows[there_D]
    new_rows = first_row + np.arange(len(old_rows))
    place = documents.schema.get_field_index("row")
    documents = documents.set_column(place, "row", pa.array(new_rows))
    pa.parquet.write_table(documents, folder / "documents.parquet", compression="zstd")
    table = chunks.ChunkTable(folders)
    ids = np.flatnonzero(np.isin(table.column("documents"), old_rows))
    for column in chunks.ARRAYS:
        array = table.take(column, ids)
        if column == "documents":
            array = new_rows[np.searchsorted(old_rows, array)]
        np.save(folder / f"{column}.npy", array, allow_pickle=False)
    first_id = len(snapshot.chunks()) - len(table)
    vectors_TW = snapshot.vectors(first_id + ids)
    np.save(folder / "vectors.npy", vectors_TW, allow_pickle=False)
    _write_index_of_delta(
        snapshot, chunks.ChunkTable([folder]), first_id, vectors_TW, folder
    )


def read_documents(folders: Sequence[Path]) -> pa.Table:
    """The documents of deltas, texts included."""
    return pa.concat_tables(
        [pa.parquet.read_table(folder / "documents.parquet") for folder in folders]
    )


def _write_index_of_delta(
    snapshot: Snapshot,
    added: chunks.ChunkTable,
    first_id: int,
    vectors_TW: Float16[np.ndarray, "T W"],
    folder: Path,
) -> None:
    """An index of the chunks of a delta that have text, as `write_index`.

    Args:
        first_id: the id of the delta's first chunk.
    """
    rows_T = np.flatnonzero(added.has_text(range(len(added))))
    texts = lexical.texts_of(added, rows_T, snapshot.tokenizer)
    write_index(snapshot.manifest, first_id + rows_T, texts, vectors_TW[rows_T], folder)


def write_index(
    manifest: Mapping,
    ids_T: np.ndarray,
    texts: Iterable[str],
    vectors_TW: np.ndarray,
    folder: Path,
) -> None:
    """An index as the build would make it, of words too if it did, into a folder."""
    settings = manifest["settings"]
    shard, facts, _ = sharded.build_shard(
        ids_T,
        vectors_TW.astype(np.float32),
        settings["index"],
        recall_target=settings["recall_target"],
        queries_QW=np.zeros((0, vectors_TW.shape[1]), np.float32),
        scratch=folder,
    )
    shard.save(folder)
    write_json(folder / "facts.json", facts)
    if "lexical" in manifest["contents"]:
        (folder / "lexical").mkdir()
        lexical.write_shard(folder / "lexical", ids_T, texts)
