"""Is a database what its checksums say, and would it be built the same again?

Opening checks what is cheap: that every file has its size, and the checksums of what
searches give back (text, tokens, tokenizer) up to a gigabyte; an index is checked when it is
loaded. `files` checks everything, `recompute` makes a sample of it again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet

from data_pipeline.database import manifest as manifests
from data_pipeline.database import version_paths
from data_pipeline.database.versions import Version, name_of
from data_pipeline.embedding import chunk_vectors
from data_pipeline.storage.files import fingerprint, read_json, sha256_of
from data_pipeline.storage.stage_record import read_stage
from data_pipeline.text import chunks

if TYPE_CHECKING:
    from data_pipeline.database.database import Database

_READ_STAGES = ("documents", "tokenizer", "chunks", "lexical")
_VERSIONS = ("deltas", "compacted")
_SAME_COSINE = 0.999
_CHECKED_BYTES = 1_000_000_000  # about a second of checksums


def described(folder: Path, version: Version) -> Iterator[tuple[Path, dict]]:
    """Every file of a version with its size and checksum.

    Raises:
        ValueError: naming a shard whose description is not there or is another's.
    """
    manifest = manifests.read(folder)
    for stage in manifest["contents"]:
        made = read_json(folder / stage / "stage.json") or {"files": {}}
        for shard, files in made["files"].items():
            for name, entry in files.items():
                path = f"{stage}/{shard}"
                if f"{path}/{name}" in version.replaced or path in version.replaced:
                    continue
                yield folder / path / name, entry
    for shard in version.own_shards:
        for name, entry in _description(folder / shard, version, shard).items():
            yield folder / shard / name, entry


def _description(shard: Path, version: Version, name: str) -> dict[str, dict]:
    """What the `shard.json` holds that a version was published with."""
    path = shard / "shard.json"
    described = read_json(path)
    if described is None:
        raise ValueError(f"{path} is missing or damaged: restore it, or {shard}")
    if version.contents and version.contents.get(name) != fingerprint(described):
        raise ValueError(
            f"{path} is damaged or another database's, not what version "
            f"{version.number} was made with: restore {shard}"
        )
    return described


def check_quickly(
    folder: Path, version: Version, *, since: Version | None = None
) -> None:
    """What opening checks; raises ValueError naming the file that is not as written.

    With `since`, a version that was opened before, of the files that it had only the sizes.
    """
    if since is not None and since.base != version.base:
        raise ValueError(
            f"{folder} was built again with other text since it was opened: open it anew"
        )
    known = set() if since is None else _own_folders(since)
    read_bytes, read = 0, []
    for path, entry in described(folder, version):
        check_size(path, entry)
        stage, part = path.relative_to(folder).parts[:2]
        is_known = (stage, part) in known or (since and stage in _READ_STAGES)
        if stage in (*_READ_STAGES, *_VERSIONS) and not is_known:
            read.append((path, entry))
            read_bytes += entry["size_bytes"]
    if read_bytes <= _CHECKED_BYTES:
        for path, entry in read:
            check_sum(path, entry)


def _own_folders(version: Version) -> set[tuple[str, ...]]:
    """Folders, by stage and name, that a version has and the build has not."""
    return {tuple(path.split("/")[:2]) for path in version.own_shards}


def check_below(shard: Path, folder: Path, version: Version) -> None:
    """Checks all files of one shard; raises ValueError naming one that is not whole."""
    for path, entry in described(folder, version):
        if path.is_relative_to(shard):
            check_size(path, entry)
            check_sum(path, entry)


def files(database: "Database") -> Iterator[tuple[Path, str]]:
    """Checks every file; gives each with what is wrong with it, '' if nothing.

    Also the sequences, which are another version's perhaps, and the neighbours of the
    version.
    """
    for path, entry in described(database.folder, database.state):
        yield path, _problem(path, entry)
    yield from _files_of_sequences(database.folder / "dataset")
    neighbours = f"{name_of(database.version)}-neighbours"
    for path in (database.folder / "versions" / neighbours).glob("*/shard.json"):
        entries = read_json(path)
        if entries is None:
            yield path, f"{path} is damaged: remove {path.parent} and build again"
        for name, entry in (entries or {}).items():
            yield path.parent / name, _problem(path.parent / name, entry)


def _files_of_sequences(stage: Path) -> Iterator[tuple[Path, str]]:
    described = stage / "stage.json"
    try:
        made = read_stage(stage)
    except ValueError as error:
        yield described, str(error)
        return
    if made is None:  # never built, or given up by compacting
        if (stage / "all").exists():
            yield described, f"{described} is missing: restore it, or build again"
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


def check_size(path: Path, entry: dict) -> None:
    """Raises ValueError naming a file that is missing or has not the size it had."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: restore it, or build again")
    size_bytes = path.stat().st_size
    if size_bytes != entry["size_bytes"]:
        raise ValueError(
            f"{path} has {size_bytes} bytes instead of {entry['size_bytes']}: restore it, "
            "or build again"
        )


def check_sum(path: Path, entry: dict) -> None:
    """Raises ValueError naming a file whose checksum is not what it was."""
    if sha256_of(path) != entry["sha256"]:
        raise ValueError(
            f"{path} is damaged (its checksum differs): restore it, or build again"
        )


def recompute(database: "Database", seed: int) -> tuple[str, int, float]:
    """Makes one random block of a random shard again, from its text.

    Returns:
        The shard's name, how many chunks were compared, and the smallest cosine of a
        vector and the one made again: 1.0 if all are bit for bit the same. Another kind of
        processor rounds otherwise.
    Raises:
        ValueError: naming the shard and what differs; a vector, if its cosine is below 0.999.
    """
    rng = np.random.default_rng(seed)
    table = database.chunks()
    shards = database.shards("chunks", "train")
    built = database.folder / "chunks"  # bits depend on what was embedded together
    whole = [n for n, shard in enumerate(shards) if shard.parent == built]
    if not whole:
        raise ValueError(
            f"every shard of {database.folder} was compacted: none to redo"
        )
    number = int(rng.choice(whole))
    rows = table.rows_of_shard(number)
    starts = np.arange(rows.start, rows.stop, chunk_vectors.TEXTS_AT_ONCE)
    start = int(rng.choice(starts))
    ids = np.arange(start, min(start + chunk_vectors.TEXTS_AT_ONCE, rows.stop))
    name = shards[number].relative_to(database.folder).as_posix()
    _compare_text(database, number, ids, name)
    tokens_TM = table.take("tokens", ids)
    again = chunk_vectors.embed_chunks(tokens_TM, database.tokenizer, database.embedder)
    there = ~database.state.is_deleted(table.take("documents", ids))
    cosine = _least_cosine(again[there], database.vectors(ids)[there])
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


def _compare_text(database: "Database", shard: int, ids: np.ndarray, name: str) -> None:
    """Cuts the documents of chunks again."""
    table = database.chunks()
    paths = version_paths.Layout(database.folder, database.state).document_tables(
        "train"
    )
    path = paths[shard]
    documents = pyarrow.parquet.read_table(path, columns=["row", "text"])
    texts = dict(
        zip(
            documents.column("row").to_pylist(),
            documents.column("text").to_pylist(),
            strict=True,
        )
    )
    of_chunks = table.take("documents", ids)
    for row in np.unique(of_chunks[~database.state.is_deleted(of_chunks)]):
        all_ids = np.flatnonzero(database.document_of_chunk == row)
        cut = chunks.cut_document(
            texts[int(row)], database.tokenizer, database.chunk_len
        )
        for column, again in zip(("tokens", "lengths", "offsets"), cut, strict=True):
            if not np.array_equal(table.take(column, all_ids), again):
                raise ValueError(f"{column} of document row {row} in {name} differ")
