"""Small corpora on disk, and what is read of them."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from data_pipeline.text.corpora import Document, Skipped, read_documents

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": zstandard.ZstdCompressor().compress,
}


def read(corpus: Path | str, **options: Any) -> tuple[list[Document], dict[str, int]]:
    skipped = Skipped()
    documents = list(read_documents(str(corpus), skipped, **options))
    return documents, counts(skipped)


def counts(skipped: Skipped) -> dict[str, int]:
    found = {}
    for reason, entry in skipped.as_dict().items():
        assert isinstance(entry["count"], int)
        found[reason] = entry["count"]
    return found


def write_jsonl(path: Path, records: list[object]) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(lines.encode()))
    return path
