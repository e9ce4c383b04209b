"""Makes a database, stage by stage; what is there and still right is used again."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet

from data_pipeline import (
    chunks,
    corpora,
    database,
    dataset,
    deduplicate,
    layout,
    lexical,
    refresh,
    versions,
)
from data_pipeline import neighbours as neighbour_tables
from data_pipeline.config import DataConfig
from data_pipeline.documents import Skipped, write_split
from data_pipeline.embedder import load_embedder
from data_pipeline.engine import fingerprint, read_json, run_stage, write_json
from data_pipeline.index import sharded
from data_pipeline.progress import Progress, say
from data_pipeline.tokenizer import Tokenizer

_FIRST = ("documents", "tokenizer", "chunks", "embeddings", "index")
STAGES = (*_FIRST, "neighbours", "dataset")
_TEXTS_AT_ONCE = 1024


class Build:
    """The stages of one database; a method makes each, from what those before it made."""

    def __init__(self, cfg: DataConfig, folder: Path):
        """Raises ValueError, naming the field, if `cfg` is not consistent."""
        cfg.validate()
        self._cfg = cfg
        self._folder = folder
        self._contents: dict[str, str] = {}

    @property
    def stages(self) -> tuple[str, ...]:
        """STAGES, with `lexical` after the index if the words are asked for."""
        return (*_FIRST, *("lexical",) * self._cfg.lexical, *STAGES[len(_FIRST) :])

    def run(self, last_stage: str = STAGES[-1]) -> None:
        """Makes all stages up to the last one named; the manifest after the last of all.

        Raises:
            ValueError: for an unknown stage, or a corpus that holds nothing usable.
        """
        stages = self.stages
        if last_stage not in stages:
            raise ValueError(f"no stage {last_stage!r}; there are {', '.join(stages)}")
        self._folder.mkdir(parents=True, exist_ok=True)
        versions.check_not_compacted(self._folder)
        for stage in stages[: stages.index(last_stage) + 1]:
            if stage == "dataset":
                self._write_manifest()  # the dataset is made from a finished database
            getattr(self, f"make_{stage}")()

    def make_documents(self) -> None:
        """Reads the corpus, splits it and drops copies."""
        cfg = self._cfg
        settings: dict[str, object] = {
            "corpus": corpora.identity(cfg.corpus),
            "embedded_size_bytes": None if cfg.corpus else cfg.embedded_size_bytes,
            "validation_share": cfg.validation_share,
            "test_share": cfg.test_share,
            "shard_size_bytes": cfg.shard_size_bytes,
        }
        self._stage("documents", settings, (), ["all"], self._write_documents)

    def _write_documents(self, _, folder: Path) -> None:
        skipped = Skipped()
        limit = None if self._cfg.corpus else self._cfg.embedded_size_bytes
        say(f"reading {self._cfg.corpus or 'the text of this Python installation'}")
        read = corpora.read_documents(self._cfg.corpus, skipped, max_size_bytes=limit)
        kept = deduplicate.deduplicate(
            read, self._cfg.validation_share, self._cfg.test_share
        )
        for line in skipped.summary_lines():
            say(f"left out: {line}")
        if not kept.documents["train"]:
            raise ValueError(
                f"no training document is left of {self._cfg.corpus!r}: give more text, "
                "or smaller data.validation_share and data.test_share"
            )
        facts = {
            "exact_duplicates": kept.exact_duplicates,
            "near_duplicates": kept.near_duplicates,
            "skipped": skipped.as_dict(),
        }
        for split, documents in kept.documents.items():
            size_bytes = sum(len(document.text.encode()) for document in documents)
            facts[split] = {"documents": len(documents), "size_bytes": size_bytes}
            say(f"{split}: {len(documents):,} documents, {size_bytes / 1e6:.2f} MB")
            write_split(folder, split, documents, self._cfg.shard_size_bytes)
        say(
            f"dropped {kept.exact_duplicates} exact duplicates and "
            f"{kept.near_duplicates} near copies of held-out documents"
        )
        write_json(folder / "facts.json", facts)

    def make_tokenizer(self) -> None:
        """Trains the tokenizer on the training split, or takes the one that is given."""
        cfg = self._cfg
        if cfg.tokenizer:  # a damaged one is noticed here, before it is copied
            settings: dict[str, object] = {
                "model": Tokenizer.load(cfg.tokenizer).fingerprint
            }
            inputs: tuple[str, ...] = ()
        else:
            settings, inputs = {"vocab_size": cfg.vocab_size}, ("documents",)
        self._stage("tokenizer", settings, inputs, ["all"], self._write_tokenizer)

    def _write_tokenizer(self, _, folder: Path) -> None:
        path = folder / "tokenizer.model"
        if self._cfg.tokenizer:
            path.write_bytes(Path(self._cfg.tokenizer).read_bytes())
            return
        say("training the tokenizer")
        shards = self._shard_names("train")
        tables = (self._read_documents(shard, ["text"]) for shard in shards)
        texts = (text.as_py() for table in tables for text in table.column("text"))
        Tokenizer.train(texts, self._cfg.vocab_size, path)

    def make_chunks(self) -> None:
        """Cuts the documents of every split."""
        settings = {"chunk_len": self._cfg.chunk_len}
        inputs = ("documents", "tokenizer")
        shards = self._shard_names()
        with Progress("chunks", len(shards), "shards") as progress:
            tokenizer = Tokenizer.load(self._path("tokenizer", "tokenizer.model"))

            def cut(shard: str, folder: Path) -> None:
                table = self._read_documents(shard, ["row", "text"])
                first_row = table.column("row")[0].as_py()
                texts = table.column("text").to_pylist()
                chunks.write_shard(
                    texts, first_row, tokenizer, self._cfg.chunk_len, folder
                )
                progress.advance(1)

            self._stage("chunks", settings, inputs, shards, cut)

    def make_embeddings(self) -> None:
        """Embeds every chunk; held-out ones too, as queries."""
        embedder = load_embedder(self._cfg.embedder)
        settings = {"embedder": embedder.fingerprint}
        shards = self._shard_names()
        tables = {shard: self._chunk_shard(shard) for shard in shards}
        todo = [s for s in shards if not (self._folder / "embeddings" / s).exists()]
        total = sum(len(tables[shard]) for shard in todo)
        tokenizer = Tokenizer.load(self._path("tokenizer", "tokenizer.model"))
        with Progress("embeddings", total, "chunks") as progress:

            def embed(shard: str, folder: Path) -> None:
                tokens_TM = tables[shard].take("tokens", np.arange(len(tables[shard])))
                blocks = []
                for start in range(0, len(tokens_TM), _TEXTS_AT_ONCE):
                    block = tokens_TM[start : start + _TEXTS_AT_ONCE]
                    texts = [tokenizer.decode(tokens_M) for tokens_M in block]
                    blocks.append(embedder.embed(texts).astype(np.float16))
                    progress.advance(len(texts))
                np.save(
                    folder / "vectors.npy", np.concatenate(blocks), allow_pickle=False
                )

            self._stage("embeddings", settings, ("chunks", "tokenizer"), shards, embed)

    def make_index(self) -> None:
        """Indexes the training chunks and measures the recall on held-out ones."""
        cfg = self._cfg
        settings = {
            "kind": cfg.index,
            "recall_target": cfg.recall_target,
            "shard_rows": cfg.index_shard_rows,
        }
        parts = self._index_parts()

        def write(name: str, folder: Path) -> None:
            self._write_index(parts[name], folder)

        inputs = ("chunks", "embeddings")
        self._stage("index", settings, inputs, list(parts), write)

    def _index_parts(self) -> dict[str, list[str]]:
        """Consecutive shards of the training split, as many as an index may have rows."""
        shards = self._shard_names("train")
        sizes = {shard: len(self._chunk_shard(shard)) for shard in shards}
        return sharded.split_rows(sizes, self._cfg.index_shard_rows)

    def _searchable(self, shards: list[str]):
        """The table of the training chunks, ids in consecutive shards and with text."""
        table = chunks.ChunkTable(
            [self._folder / "chunks" / shard for shard in self._shard_names("train")]
        )
        first, last = (int(shard.split("-")[1]) for shard in (shards[0], shards[-1]))
        ids = range(table.rows_of_shard(first).start, table.rows_of_shard(last).stop)
        return table, ids, np.asarray(ids, np.int64)[table.has_text(ids)]

    def make_lexical(self) -> None:
        """Indexes the words of the training chunks, in the shards of the index."""
        settings = {**lexical.SETTINGS, "shard_rows": self._cfg.index_shard_rows}
        parts = self._index_parts()
        tokenizer = Tokenizer.load(self._path("tokenizer", "tokenizer.model"))

        def write(name: str, folder: Path) -> None:
            table, _, ids_T = self._searchable(parts[name])
            say(f"indexing the words of {len(ids_T):,} chunks")
            texts = lexical.texts_of(table, ids_T, tokenizer)
            lexical.write_shard(folder, ids_T, texts)

        self._stage("lexical", settings, ("chunks", "tokenizer"), list(parts), write)

    def _write_index(self, shards: list[str], folder: Path) -> None:
        _, ids, ids_T = self._searchable(shards)
        vectors_TW = self._vectors(shards)[ids_T - ids.start]
        say(f"indexing {len(vectors_TW):,} vectors")
        held_out = self._shard_names("validation") + self._shard_names("test")
        queries_QW = self._vectors(held_out, sharded.MAX_QUERIES)
        shard, facts = sharded.build_shard(
            ids_T,
            vectors_TW,
            self._cfg.index,
            recall_target=self._cfg.recall_target,
            queries_QW=queries_QW,
        )
        shard.save(folder)
        write_json(folder / "facts.json", facts)
        say(f"{facts['kind']}: {sharded.recall_in_words(facts)}")

    def make_neighbours(self) -> None:
        """Finds the neighbours of every chunk of every split."""
        settings = {"candidates": self._cfg.candidates}
        shards = self._shard_names()
        self._write_manifest()
        opened = database.Database.open(self._folder, version=0)
        todo = [s for s in shards if not (self._folder / "neighbours" / s).exists()]
        total = sum(len(self._chunk_shard(shard)) for shard in todo)
        with Progress("neighbours", total, "chunks") as progress:

            def find(shard: str, folder: Path) -> None:
                split, number = shard.split("-")
                rows = opened.chunks(split).rows_of_shard(int(number))
                queries = layout.vectors(self._folder / "embeddings" / shard)
                ids, distances = neighbour_tables.find_neighbours(
                    opened.index,
                    queries,
                    self._cfg.candidates,
                    opened.allowed_for(split, np.asarray(rows)),
                )
                neighbour_tables.write_shard(folder, ids, distances)
                progress.advance(len(queries))

            inputs = ("chunks", "embeddings", "index")
            self._stage("neighbours", settings, inputs, shards, find)

    def make_dataset(self) -> None:
        """Packs chunks and neighbours into sequences."""
        fields = ("sequence_chunks", "num_neighbours", "neighbour_len", "seed")
        settings: dict[str, object] = {
            name: getattr(self._cfg, name) for name in fields
        }
        opened = database.Database.open(self._folder)
        if opened.version:  # of the build the neighbours are there
            settings["version"] = opened.fingerprint
            refresh.refresh_neighbours(opened)

        def write(_, folder: Path) -> None:
            say("writing sequences")
            dataset.write(opened, self._cfg, folder)

        inputs = ("chunks", "neighbours", "tokenizer")
        self._stage("dataset", settings, inputs, ["all"], write)

    def _stage(
        self,
        name: str,
        settings: Mapping,
        inputs: tuple[str, ...],
        shards: list[str],
        make_shard: Callable[[str, Path], None],
    ) -> None:
        self._contents[name] = run_stage(
            self._folder / name,
            {"format": layout.FORMAT_VERSION, **settings},
            {stage: self._contents[stage] for stage in inputs},
            shards,
            make_shard,
        )

    def _path(self, stage: str, file: str) -> Path:
        return self._folder / stage / "all" / file

    def _shard_names(self, split: str = "*") -> list[str]:
        paths = (self._folder / "documents" / "all").glob(f"{split}-*.parquet")
        return sorted(path.stem for path in paths)

    def _read_documents(self, shard: str, columns: list[str]):
        path = self._path("documents", f"{shard}.parquet")
        return pyarrow.parquet.read_table(path, columns=columns)

    def _chunk_shard(self, shard: str) -> chunks.ChunkTable:
        return chunks.ChunkTable([self._folder / "chunks" / shard])

    def _vectors(self, shards: list[str], at_most: int | None = None) -> np.ndarray:
        folders = [self._folder / "embeddings" / shard for shard in shards]
        return layout.read_vectors(folders, self._embedding_width(), at_most)

    def _embedding_width(self) -> int:
        return load_embedder(self._cfg.embedder).width

    def _write_manifest(self) -> None:
        """Says what the directory holds; the database is open to readers from now on."""
        tokenizer = Tokenizer.load(self._path("tokenizer", "tokenizer.model"))
        embedder = load_embedder(self._cfg.embedder)
        made_before = {
            stage: self._contents[stage]
            for stage in self.stages[:-1]
            if stage in self._contents
        }
        # The words follow from the chunks, and no sequence depends on them.
        identity = {s: c for s, c in made_before.items() if s != "lexical"}
        num_chunks = {
            split: sum(len(self._chunk_shard(s)) for s in self._shard_names(split))
            for split in dataset.SPLITS
        }
        manifest = {
            "format_version": layout.FORMAT_VERSION,
            "fingerprint": fingerprint(identity),
            "contents": made_before,
            "chunk_len": self._cfg.chunk_len,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "embedder": self._cfg.embedder,
            "embedder_fingerprint": embedder.fingerprint,
            "embedding_width": embedder.width,
            "corpus": self._cfg.corpus or "the text of this Python installation",
            "chunks": num_chunks,
            "documents": read_json(self._path("documents", "facts.json")),
            "index": sharded.read_facts(self._folder / "index"),
            "settings": dataclasses.asdict(self._cfg),
        }
        write_json(self._folder / "manifest.json", manifest)
