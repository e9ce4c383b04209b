"""Where the shards of a database's version are: the build's, what stands in for them, and
what was added.
"""

import dataclasses
from pathlib import Path

from data_pipeline.database.versions import Version
from data_pipeline.storage.files import read_json


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
