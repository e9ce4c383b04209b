"""The manifest: the file by which a folder is a database, and what the build says of it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from data_pipeline.config import DataConfig
from data_pipeline.embedding import embedder as embedders
from data_pipeline.embedding.embedder import Embedder
from data_pipeline.index import sharded
from data_pipeline.storage import costs
from data_pipeline.storage.files import (
    fingerprint,
    read_json,
    read_sealed,
    write_sealed,
)
from data_pipeline.storage.stage_record import read_stage
from data_pipeline.text.tokenizer import Tokenizer

FORMAT_VERSION = 1
_STAGES = ("documents", "tokenizer", "chunks", "embeddings", "index")
_MORE_STAGES = ("lexical", "neighbours")  # where they are made
_TEXTS = ("fingerprint", "tokenizer_fingerprint", "embedder", "embedder_fingerprint")
_MOST = 2**20  # of what is a shape; arrays of it are made before any file is looked at


def write(
    folder: Path,
    cfg: DataConfig,
    embedder: Embedder,
    num_chunks: Mapping[str, int],
    contents: Mapping[str, str],
) -> None:
    """Writes `manifest.json`: from now on the folder can be opened.

    Args:
        num_chunks: the number of chunks of each split.
        contents: fingerprints of the stages that are made, the dataset's left out.
    """
    tokenizer = Tokenizer.load(folder / "tokenizer" / "all" / "tokenizer.model")
    built = [cost for cost in costs.read(folder) if cost.stage == "index"]
    # A fact of the machine that built it, so no part of the contents.
    speed = sharded.queries_per_s(built)
    # The words follow from the chunks, and no sequence depends on them.
    identity = {s: c for s, c in contents.items() if s != "lexical"}
    write_sealed(
        folder / "manifest.json",
        {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint(identity),
            "contents": dict(contents),
            "chunk_len": cfg.chunk_len,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "embedder": cfg.embedder,
            "embedder_fingerprint": embedder.fingerprint,
            "embedding_width": embedder.width,
            "corpus": cfg.corpus_name,
            "chunks": dict(num_chunks),
            "documents": read_json(folder / "documents" / "all" / "facts.json"),
            "index": {**sharded.read_facts(folder / "index"), "queries_per_s": speed},
            "settings": dataclasses.asdict(cfg),
        },
    )


def read(folder: Path) -> dict:
    """The manifest of a finished database.

    Raises:
        ValueError: if there is none, it is damaged or of another format, or a stage is not
            the one that it names, because a later build was broken off.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise ValueError(
            f"{folder} holds no finished database (no manifest.json): build it with "
            "`retro database` (`make database`), with the same --corpus, --workdir or "
            "--database; folders below work/ are those of the folder you are in"
        )
    manifest = read_sealed(path)
    if manifest and manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder} has database format {manifest.get('format_version')}, this "
            f"code reads {FORMAT_VERSION}: build it again"
        )
    if manifest is None or not _is_manifest(manifest):
        raise ValueError(
            f"{path} is damaged: run the build again, it makes what is missing"
        )
    for stage, contents in manifest["contents"].items():
        made = read_stage(folder / stage) or {}
        if made.get("contents") != contents:
            raise ValueError(
                f"{folder / stage} is not what {path} speaks of: "
                "a build was broken off, start it again"
            )
    return manifest


def _is_manifest(manifest: Mapping) -> bool:
    """Whether it has what readers count on, and names no other folders than stages."""
    contents, sizes = manifest.get("contents"), ("chunk_len", "embedding_width")
    return (
        isinstance(contents, dict)
        and set(_STAGES) <= contents.keys() <= {*_STAGES, *_MORE_STAGES}
        and all(type(manifest.get(name, "")) is str for name in _TEXTS)
        and all(type(manifest.get(name)) is int for name in sizes)
        and all(1 <= manifest[name] <= _MOST for name in sizes)
        and all(isinstance(manifest.get(n, {}), dict) for n in ("index", "settings"))
    )


def load_embedder_of(folder: Path, manifest: dict) -> Embedder:
    """The embedder of a database; ValueError if its weights are not the same now."""
    embedder = embedders.load_embedder(manifest["embedder"])
    if embedder.fingerprint != manifest["embedder_fingerprint"]:
        raise ValueError(
            f"embedder {manifest['embedder']!r} has fingerprint "
            f"{embedder.fingerprint}, {folder} was built with "
            f"{manifest['embedder_fingerprint']}: build it again"
        )
    return embedder
