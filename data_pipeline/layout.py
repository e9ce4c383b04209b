"""Where the shards of a database's version are: the build's, what stands in for them, and
what was added.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from data_pipeline.columns import Column, open_array
from data_pipeline.engine import read_json
from data_pipeline.versions import Version


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one version; added documents belong to the training split."""

    folder: Path
    version: Version

    def shards(self, stage: str, split: str) -> list[Path]:
        """Folders of a split's shards of chunks, embeddings or neighbours, in order.

        Neighbours of a version are not in shards: of them these are the build's.
        """
        built = [self.built(f"{stage}/{name}") for name in self.built_shards(split)]
        return built + (self.deltas(split) if stage != "neighbours" else [])

    def built_shards(self, split: str) -> list[str]:
        """Names of the shards of a split that the build made."""
        made = read_json(self.folder / "chunks" / "stage.json") or {"shards": []}
        return [name for name in made["shards"] if name.startswith(f"{split}-")]

    def built(self, path: str) -> Path:
        """What the build made at a path, or what stands in for it."""
        return self.folder / self.version.replaced.get(path, path)

    def deltas(self, split: str = "train") -> list[Path]:
        """Folders of what was added to a split."""
        names = self.version.deltas if split == "train" else ()
        return [self.folder / "deltas" / name for name in names]

    def index_shards(self) -> list[Path]:
        """Folders of the index: the build's, then one for each delta."""
        made = read_json(self.folder / "index" / "stage.json") or {"shards": []}
        return [self.built(f"index/{name}") for name in made["shards"]] + self.deltas()

    def lexical_shards(self) -> list[Path]:
        """Folders of the index of words, in the order of `index_shards`."""
        made = read_json(self.folder / "lexical" / "stage.json") or {"shards": []}
        built = [self.built(f"lexical/{name}") for name in made["shards"]]
        return built + [delta / "lexical" for delta in self.deltas()]

    def document_tables(self, split: str) -> list[Path]:
        """Parquet files of a split's documents, in the order of their rows."""
        names = self.built_shards(split)
        built = [self.built(f"documents/all/{name}.parquet") for name in names]
        return built + [delta / "documents.parquet" for delta in self.deltas(split)]


def vectors(shard: Path) -> np.ndarray:
    """Embeddings of a shard's chunks, (T, W) float16, by memory map."""
    return open_array(shard / "vectors.npy")


def all_vectors(shards: Sequence[Path]) -> Column:
    """Embeddings of the chunks of shards by id, (T, W) float16, by memory map."""
    return Column([shard / "vectors.npy" for shard in shards])


def read_vectors(
    shards: Sequence[Path], width: int, at_most: int | None = None
) -> Float32[np.ndarray, "T W"]:
    """Vectors of whole shards in memory, or so many spread evenly over them.

    Spread, because the first would be those of a few documents.
    """
    parts = [vectors(shard) for shard in shards]
    total = sum(len(part) for part in parts)
    kept = total if at_most is None else min(total, at_most)
    chosen = np.arange(kept) * total // max(kept, 1)
    found = [np.zeros((0, width), np.float32)]
    for part in parts:
        found.append(part[chosen[(chosen >= 0) & (chosen < len(part))]])
        chosen = chosen - len(part)
    return np.concatenate(found, dtype=np.float32)
