"""Makes a database, stage by stage; what is there and still right is used again."""

import dataclasses
import importlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from data_pipeline.build import documents_stage, shard_work, stage_code
from data_pipeline.build.engine import Engine, Resource, Work, run_stage
from data_pipeline.build.local_engine import LocalEngine
from data_pipeline.config import DataConfig
from data_pipeline.database import Snapshot, manifest, refreshed_neighbours, versions
from data_pipeline.database.neighbours import NeighbourTable
from data_pipeline.index import lexical
from data_pipeline.sequences import dataset
from data_pipeline.storage.files import remove_temporaries
from data_pipeline.storage.progress import say
from data_pipeline.storage.stage_record import changed_settings, contents_if_finished
from data_pipeline.storage.system_errors import explained
from data_pipeline.text import corpora, long_documents
from data_pipeline.text.documents import Skipped
from data_pipeline.text.tokenizer import Tokenizer

_FIRST = ("documents", "tokenizer", "chunks", "embeddings", "index")
STAGES = (*_FIRST, "neighbours", "dataset")
# What some are made of, in order, each a stage itself; given up once the whole is there.
STEPS = {
    "documents": ("texts", "kept", "tables"),
    "neighbours": ("searches",),
    "dataset": ("sequences",),
}
WITH_STEPS = tuple(name for stage in STAGES for name in (*STEPS.get(stage, ()), stage))
# Settings of the dataset alone.
_OF_SEQUENCES = ("sequence_chunks", "num_neighbours", "neighbour_len", "seed")
# Made in one piece, in this process: which documents remain is known only from all of them;
# the tokenizer is trained on all texts; a dataset is one folder.
_WHOLE = {"all": 1}


class Build:
    """The stages of one database; a method makes each, from what those before it made."""

    def __init__(self, cfg: DataConfig, folder: Path, engine: Engine | None = None):
        """Takes the engine that makes shards; `LocalEngine`, if not given.

        Raises:
            ValueError: naming the field, if `cfg` is not consistent.
        """
        cfg.validate()
        self._cfg = cfg
        self._folder = folder
        self._engine = engine or LocalEngine()
        self._contents: dict[str, str] = {}
        self._announced: set[str] = set()
        # The name may have stood for another model in an earlier build.
        shard_work.embedder.cache_clear()

    @property
    def stages(self) -> tuple[str, ...]:
        """STAGES, with `lexical` after the index if the words are asked for."""
        return (*_FIRST, *("lexical",) * self._cfg.lexical, *STAGES[len(_FIRST) :])

    def run(self, last_stage: str = STAGES[-1]) -> None:
        """Makes all stages up to the last one named.

        The manifest is written before the neighbours, which are searched in what it opens,
        and again with them. It does not name the dataset. Where the database was compacted
        only that is made.

        Raises:
            ValueError: for an unknown stage or model, a corpus that holds nothing usable,
                another build in this folder, or updates whose base would change.
        """
        known = self.stages
        if last_stage not in known:
            raise ValueError(f"no stage {last_stage!r}; there are {', '.join(known)}")
        wanted = known[: known.index(last_stage) + 1]
        shard_work.check_models(self._cfg, wanted)
        self._folder.mkdir(parents=True, exist_ok=True)
        with explained(self._folder), versions.sole_builder(self._folder):
            remove_temporaries(self._folder)
            if versions.is_compacted(self._folder):
                self._go_on_from_compacted()
                wanted = tuple(stage for stage in wanted if stage == "dataset")
            for stage in wanted:
                getattr(self, f"make_{stage}")()

    def _go_on_from_compacted(self) -> None:
        """Takes the stages as they are, of which nothing but the dataset can be made again.

        Raises:
            ValueError: if other settings would make the others anew.
        """
        made = manifest.read(self._folder)
        same = all(
            name in _OF_SEQUENCES or made["settings"].get(name, value) == value
            for name, value in dataclasses.asdict(self._cfg).items()
        )
        if not same or "neighbours" not in made["contents"]:
            raise ValueError(
                f"{self._folder} was compacted: building here would bring back what was "
                "deleted. With the settings of its build only the training sequences are "
                "made again; build into another folder, or go on with add, replace and "
                "delete"
            )
        self._contents = dict(made["contents"])

    def make_documents(self) -> None:
        """Reads the corpus, splits it and drops copies.

        A corpus in one piece is read here, where it was asked for; parts of a folder
        wherever the engine has room.
        """
        cfg = self._cfg
        validation_share, test_share = cfg.held_out_shares
        settings: dict[str, object] = {
            "corpus": corpora.identity(cfg.corpus),
            "part_bytes": cfg.part_bytes,
            "text_column": cfg.text_column,
            "max_document_bytes": cfg.max_document_bytes,
            "embedded_size_bytes": cfg.corpus_size_bytes,
            "validation_share": validation_share,
            "test_share": test_share,
            "shard_size_bytes": cfg.shard_size_bytes,
        }
        texts, kept, tables = (self._folder / step for step in STEPS["documents"])
        if not self._is_finished("documents", settings, (), _WHOLE):
            skipped = Skipped()
            parts = tuple(corpora.parts(cfg.corpus, skipped, cfg.shard_size_bytes))
            read = {f"{number:05d}": len(part) for number, part in enumerate(parts)}
            part_bytes = long_documents.part_bytes(
                cfg.part_bytes, corpora.file_sizes(cfg.corpus, parts)
            )
            self._stage(
                "texts",
                settings,
                (),
                read,
                documents_stage.TextsWork(cfg, parts, part_bytes),
                engine=LocalEngine() if parts == ((),) else None,
                unit="files",
            )
            of_parts = tuple(texts / name for name in read)
            keep = documents_stage.KeptWork(cfg, of_parts, skipped.as_dict())
            self._whole("kept", settings, ("texts",), keep)
            self._stage(
                "tables",
                settings,
                ("kept",),
                documents_stage.tables(kept / "all"),
                documents_stage.TablesWork(of_parts, kept / "all"),
                unit="documents",
            )
        self._whole(
            "documents",
            settings,
            (),
            documents_stage.DocumentsWork(kept / "all", tables),
        )
        self._give_up_steps("documents")

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
        work = shard_work.TokenizerWork(self._folder, cfg.tokenizer, cfg.vocab_size)
        self._whole("tokenizer", settings, inputs, work)

    def make_chunks(self) -> None:
        """Cuts the documents of every split."""
        settings = {"chunk_len": self._cfg.chunk_len}
        shards = dict.fromkeys(self._shard_names(), 1)
        work = shard_work.ChunksWork(
            self._folder, self._contents["tokenizer"], self._cfg.chunk_len
        )
        self._stage("chunks", settings, ("documents", "tokenizer"), shards, work)

    def make_embeddings(self) -> None:
        """Embeds every chunk; held-out ones too, as queries."""
        embedder = shard_work.embedder(self._cfg.embedder)
        work = shard_work.EmbeddingsWork(
            self._folder,
            self._contents["tokenizer"],
            self._cfg.embedder,
            embedder.fingerprint,
        )
        self._stage(
            "embeddings",
            {"embedder": embedder.fingerprint},
            ("chunks", "tokenizer"),
            {shard: self._size(shard) for shard in self._shard_names()},
            work,
            resource="accelerator",
            unit="chunks",
        )

    def make_index(self) -> None:
        """Indexes the training chunks and measures the recall on held-out ones."""
        cfg = self._cfg
        settings = {
            "kind": cfg.index,
            "recall_target": cfg.recall_target,
            "shard_rows": cfg.index_shard_rows,
        }
        parts = shard_work.index_parts(self._folder, cfg.index_shard_rows)
        work = shard_work.IndexWork(
            self._folder,
            kind=cfg.index,
            recall_target=cfg.recall_target,
            width=shard_work.embedder(cfg.embedder).width,
            parts=parts,
            held_out=(
                *self._shard_names("validation"),
                *self._shard_names("test"),
            ),
        )
        shards = {f"{number:05d}": 1 for number in range(len(parts))}
        inputs = ("chunks", "embeddings")
        self._stage("index", settings, inputs, shards, work, resource="cores")

    def make_lexical(self) -> None:
        """Indexes the words of the training chunks, in the shards of the index."""
        rows = self._cfg.index_shard_rows
        settings = {**lexical.SETTINGS, "shard_rows": rows}
        parts = shard_work.index_parts(self._folder, rows)
        work = shard_work.LexicalWork(self._folder, self._contents["tokenizer"], parts)
        shards = {f"{number:05d}": 1 for number in range(len(parts))}
        self._stage("lexical", settings, ("chunks", "tokenizer"), shards, work)

    def make_neighbours(self) -> None:
        """Finds the neighbours of every chunk of every split.

        In every shard of the index by itself, then the nearest of these; the files of the
        first half go when the second is done.
        """
        candidates = self._cfg.candidates
        settings = {"candidates": candidates}
        inputs = ("chunks", "embeddings", "index")
        shards = dict.fromkeys(self._shard_names(), 1)
        self._write_manifest()
        paths = sorted((self._folder / "index").glob("[0-9]*"))
        indexes = tuple(path.name for path in paths)
        if not self._is_finished("neighbours", settings, inputs, shards):
            pairs = {
                shard_work.name_of_search(index, shard): self._size(shard)
                for index in indexes
                for shard in shards
            }
            opened = Snapshot.open(self._folder, version=0)
            search = shard_work.SearchesWork(
                self._folder, opened.fingerprint, candidates
            )
            self._stage(
                "searches",
                settings,
                inputs,
                pairs,
                search,
                resource="accelerator" if self._cfg.index == "exact" else "cores",
                unit="chunks" if len(indexes) == 1 else "chunks in shards of the index",
            )
        merge = shard_work.NeighboursWork(self._folder, indexes, candidates)
        self._stage("neighbours", settings, inputs, shards, merge)
        self._give_up_steps("neighbours")
        self._write_manifest()  # with the neighbours, which the dataset is made from
        self._warn_of_few_neighbours()

    def _warn_of_few_neighbours(self) -> None:
        """Says how many training chunks have no neighbour, if it is more than a tenth."""
        names = self._shard_names("train")
        table = NeighbourTable([self._folder / "neighbours" / name for name in names])
        alone = table.count_alone()
        if alone > len(table) / 10:
            say(
                f"{alone:,} of {len(table):,} training chunks have no neighbour: a chunk's "
                "neighbours are of other documents, and there are too few. A model learns "
                "nothing of retrieval from chunks without neighbours: give more documents"
            )

    def make_dataset(self) -> None:
        """Packs chunks and neighbours into sequences, and joins these into a dataset."""
        settings: dict[str, object] = {
            name: getattr(self._cfg, name) for name in _OF_SEQUENCES
        }
        opened = Snapshot.open(self._folder)
        if opened.version:  # of the build the neighbours are there
            settings["version"] = opened.fingerprint
            refreshed_neighbours.refresh_neighbours(opened)
        of_database = (self._folder, opened.fingerprint, opened.version, self._cfg)
        inputs = ("chunks", "neighbours", "tokenizer")
        if not self._is_finished("dataset", settings, inputs, _WHOLE):
            # It takes seconds, which would count as those of the first shard: an engine
            # judges by that one how long the others take.
            importlib.import_module("tensorflow")
            self._stage(
                "sequences",
                settings,
                inputs,
                dataset.plan(opened, self._cfg),
                shard_work.SequencesWork(*of_database),
                unit="sequences",
            )
        self._whole("dataset", settings, inputs, shard_work.DatasetWork(*of_database))
        self._give_up_steps("dataset")

    def _whole(
        self, name: str, settings: Mapping, inputs: tuple[str, ...], work: Work
    ) -> None:
        self._stage(name, settings, inputs, _WHOLE, work, engine=LocalEngine())

    def _stage(
        self,
        name: str,
        settings: Mapping,
        inputs: tuple[str, ...],
        shards: Mapping[str, int],
        work: Work,
        *,
        engine: Engine | None = None,
        resource: Resource = "core",
        unit: str = "shards",
    ) -> None:
        self._contents[name] = run_stage(
            self._folder / name,
            *self._identity(name, settings, inputs, shards),
            shards,
            work,
            engine or self._engine,
            resource=resource,
            unit=unit,
        )

    def _identity(
        self,
        name: str,
        settings: Mapping,
        inputs: tuple[str, ...],
        shards: Mapping[str, int],
    ) -> tuple[dict[str, object], dict[str, str]]:
        parts = (*STEPS.get(name, ()), name)
        code = stage_code.identity(parts)
        identity = (
            {"format": manifest.FORMAT_VERSION, "code": code, **settings},
            {stage: self._contents[stage] for stage in inputs},
        )
        versions.check_base(self._folder / name, *identity, shards)
        edits = stage_code.describe_edits(parts)
        changed = changed_settings(self._folder / name, identity[0])
        # A stage's identity is asked for more than once; why it changed is said once.
        if edits and "code" in changed and name not in self._announced:
            self._announced.add(name)
            say(f"{edits}: {name} is made again")
        return identity

    def _is_finished(
        self,
        name: str,
        settings: Mapping,
        inputs: tuple[str, ...],
        shards: Mapping[str, int],
    ) -> bool:
        identity = self._identity(name, settings, inputs, shards)
        found = contents_if_finished(self._folder / name, *identity, shards)
        return found is not None

    def _give_up_steps(self, stage: str) -> None:
        for step in STEPS[stage]:
            shutil.rmtree(self._folder / step, ignore_errors=True)

    def _shard_names(self, split: str = "*") -> list[str]:
        return shard_work.shard_names(self._folder, split)

    def _size(self, shard: str) -> int:
        return len(shard_work.chunk_table(self._folder, [shard]))

    def _write_manifest(self) -> None:
        """Names the contents of the stages that are there, so that readers can open them.

        Written when the index is there, and again with the neighbours. A reader is refused
        whenever a stage that it names is not finished with those contents.
        """
        made = [s for s in self.stages[:-1] if s in self._contents]
        manifest.write(
            self._folder,
            self._cfg,
            shard_work.embedder(self._cfg.embedder),
            {
                split: sum(self._size(shard) for shard in self._shard_names(split))
                for split in dataset.SPLITS
            },
            {stage: self._contents[stage] for stage in made},
        )
