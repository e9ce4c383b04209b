"""Where the files of a database's version are.

    manifest.json   format, fingerprints, sizes, measured recall (`manifest.py`)
    documents/      Parquet tables of the documents of each split, texts included
    tokenizer/      tokenizer.model (SentencePiece, or a tokenizer.json)
    chunks/         SPLIT-00000/ ...  chunk tables of the splits (`text/chunks.py`)
    embeddings/     SPLIT-00000/vectors.npy, (T, W) float16
    index/          00000/ ...  over the embeddings of the training split, the only one
                    searched (`index/sharded.py`)
    lexical/        00000/ ...  the words of the same chunks, if asked for
    neighbours/     SPLIT-00000/ ...  (`neighbours.py`)
    dataset/        the TFDS dataset of sequences (`sequences/dataset.py`)
    versions/ ...   what was added and deleted since (`versions.py`)

The build makes all but `versions/`. Validation and test documents are only queries and
can't be found.
"""

import dataclasses
from pathlib import Path

from data_pipeline.database.versions import Version, name_of
from data_pipeline.storage.files import read_json


@dataclasses.dataclass(frozen=True, slots=True)
class VersionPaths:
    """The paths of one version: the build's, what stands in for them, and what was added.

    Added documents belong to the training split.
    """

    folder: Path
    version: Version

    def shards(self, stage: str, split: str) -> list[Path]:
        """Folders of a split's shards in a stage, in order; what was added is last.

        Of neighbours these are the build's alone: see `changed_neighbours`.
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

    @property
    def changed_neighbours(self) -> Path:
        """The folder, with one a split, of neighbours that are not the build's."""
        return self.folder / "versions" / f"{name_of(self.version.number)}-neighbours"
