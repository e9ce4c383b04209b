"""A run's jobs: to train a model, to evaluate it and to generate text with it."""

import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from data_pipeline.database import Database
from data_pipeline.sequences import held_out
from data_pipeline.sequences.batches import Sequences, num_neighbours
from data_pipeline.storage import locks
from data_pipeline.storage.files import fingerprint, read_json, write_file, write_json
from data_pipeline.storage.progress import Progress, say
from data_pipeline.text.corpora import Reading, Skipped, read_documents
from data_pipeline.text.tokenizer import Tokenizer
from experiments import workdirs
from experiments.config import Experiment
from experiments.jobs import continuations, decoder_start, facts, measurement, reading
from experiments.jobs.remote_database import NoDatabase, RemoteDatabase
from experiments.report import report
from retro_jax.devices import processes, sharding
from retro_jax.model import parameters
from retro_jax.pretrained import fingerprint_of
from retro_jax.runs import checkpoints, goodput, wandb_run
from retro_jax.training import retrofit
from retro_jax.training.batch import (
    Batch,
    model_inputs,
    to_devices,
    with_oracle_neighbours,
    with_other_numbers,
    with_worse_neighbours,
)
from retro_jax.training.encodings import Encodings
from retro_jax.training.encodings_folder import EncodingsFolder
from retro_jax.training.loop import train
from retro_jax.training.number_tokens import NumberTokens

_TOKENIZER = "tokenizer.model"
_REPORTED = "results"  # the file of results that the report shows
# What belongs to a run and is put aside with it.
_RUN_FILES = (
    "run.json",
    "settings.json",
    "checkpoints",
    "metrics",
    "evaluation",
    reading.FILE,
    "report.html",
    "report.md",
    "report_files",
)


class Job:
    """One run: its settings, its folder and its database."""

    def __init__(self, cfg: Experiment, workdir: Path, database: Path):
        """Raises ValueError if there is no database or it was made for other settings."""
        self._cfg, self._workdir = cfg, workdir
        self.database = Database.open(database)
        _check_chunk_len(cfg, database, self.database.chunk_len)
        cfg.set_vocab_size(self.database.manifest["vocab_size"])
        _take_chosen_layers(cfg, workdir)
        self._mesh = sharding.make_mesh(cfg.mesh)

    def _sequences(self, split: str) -> Sequences:
        """A split of the dataset.

        Raises:
            ValueError: if it was made from another database or with other settings.
        """
        folder = self.database.folder / "dataset" / "all"
        if not folder.exists():
            raise ValueError(
                f"{self.database.folder} has no training sequences: make them with "
                "`retro database` and the same --corpus, --workdir or --database"
            )
        found = Sequences(folder, split, self._cfg.data.num_neighbours)
        if found.metadata.get("database") != self.database.fingerprint:
            raise ValueError(
                f"{self.database.folder}/dataset was made from another version of the "
                f"database ({found.metadata.get('database')}, this one is "
                f"{self.database.fingerprint}): bring it up to date with `retro database` "
                "and the same --corpus, --workdir or --database"
            )
        made_for, cfg = found.metadata["data"], self._cfg.data
        for name, value in made_for.items():
            wanted = getattr(cfg, name)
            has_enough = name == "num_neighbours" and wanted < value
            if wanted != value and not has_enough:
                raise ValueError(
                    f"the dataset was made with data.{name}={value}, this run has "
                    f"{wanted}: build the database again"
                )
        return found

    def _run_identity(self) -> dict:
        """What a checkpoint must agree with to be gone on from, as JSON."""
        folder, reads = self.database.folder / "dataset", self._cfg.data.num_neighbours
        made = {
            **self._cfg.identity(),
            "dataset": (read_json(folder / "stage.json") or {}).get("contents"),
            "tokenizer": self.database.manifest["tokenizer_fingerprint"],
        }
        if reads < (num_neighbours(folder / "all") or 0):  # else the dataset says it
            made["num_neighbours"] = reads
        return made

    def train(
        self, *, restart: bool, saved: Callable[[int], None] = lambda step: None
    ) -> None:
        """Trains to the last step, from the newest checkpoint of this same run.

        A model whose database has changed since goes on with what the database holds now.
        `saved` is told of each step in every process, once its checkpoint is whole.

        Raises:
            ValueError: for a run of other settings, unless it is to `restart`; then the
                other one is put aside, also if only its database has changed.
        """
        wandb_run.check(self._cfg.watch)
        begun_from = self._begun_from()
        # A wrong one is refused before anything is written.
        baseline = None if begun_from else self._baseline()
        with self._sole("training"):
            identity = self._begin(begun_from or self._start_of(baseline), restart)
            done, steps = self._last_step() or 0, self._cfg.train.steps
            if done >= steps:
                say(
                    f"training: up to date, {done} steps are done, of {steps} asked for"
                )
                return
            # A wrong dataset is refused before anything is compiled.
            self._sequences("train")
            if begun_from and not done:
                baseline = self._baseline()
            backbone = baseline.params if baseline is not None and not done else None
            del baseline  # a run that goes on has its own copy
            train(
                self._cfg.model,
                self._cfg.optimizer,
                self._cfg.train,
                self._mesh,
                self._batches_from,
                self._workdir,
                {name: made for name, made in identity.items() if name != "dataset"},
                told={"dataset": identity["dataset"]},
                trained=self._trained(),
                backbone=backbone,
                encodings=self._encodings,
                watch=self._cfg.watch,
                saved=saved,
            )

    def _begin(self, init_from: object, restart: bool) -> dict:
        """Makes the folder this run's, if it is not another's; gives the run's identity."""
        identity = self._run_identity() | {"init_from": init_from}
        marker = self._workdir / "run.json"
        known = read_json(marker)
        processes.wait_for_all("run.json is read")
        if known is not None and known != identity:
            self._other_run(known, identity, restart)
        if processes.is_first():
            write_json(marker, identity)
            workdirs.record_settings(self._cfg, self._workdir)
            # So that the model can write without a database.
            write_file(self._workdir / _TOKENIZER, self.database.tokenizer.model)
        processes.wait_for_all("run.json is written")
        if read_json(marker) != identity:
            raise ValueError(
                f"{self._workdir} is not the folder of process 0: all processes need a "
                "--workdir on storage that they share, and the same settings"
            )
        if not self._has_held_out_text():
            say(f"{self._no_report}: there will be a model and no report")
        return identity

    @contextlib.contextmanager
    def _sole(self, doing: str) -> Iterator[None]:
        """Keeps other processes from doing the same in this workdir meanwhile."""
        if not processes.is_first():  # the first one speaks for all of its run
            yield
            return
        with locks.locked(self._workdir / f".{doing}", f"{doing} in"):
            yield

    def _has_held_out_text(self) -> bool:
        """Whether there is anything to measure the model on."""
        return self.database.manifest["chunks"][self._cfg.evaluation.split] > 0

    @property
    def _no_report(self) -> str:
        split = self._cfg.evaluation.split
        return (
            f"the {split} split has no text (for a report give more text, or a larger "
            f"data.{split}_share)"
        )

    def _baseline(self) -> retrofit.Baseline | None:
        """What a retrofit starts from; checked and read even by one that goes on."""
        if not self._cfg.init_from:
            return None
        if self._cfg.model.encoder == "decoder":
            return decoder_start.start(self._cfg, self._mesh, self._first_batch)
        path = Path(self._cfg.init_from).expanduser().resolve()
        own = self._workdir.resolve()
        if path == own or path.is_relative_to(own / "checkpoints"):
            raise ValueError(
                f"init_from {path} is this run's own folder: give the retrofit another "
                "--workdir (and --database, if that lies in the baseline's)"
            )
        baseline = retrofit.load(
            path, self._cfg.model, self._mesh, self._run_identity()
        )
        say(f"retrofits step {baseline.step} of {path} ({baseline.fingerprint})")
        return baseline

    def _start_of(self, baseline: retrofit.Baseline | None) -> dict | None:
        """A retrofit's start by its contents: a folder may be moved, not exchanged."""
        if baseline is None:
            return None
        return self._start(baseline.step, baseline.fingerprint)

    def _start(self, step: int, parameters_fingerprint: str) -> dict:
        return {
            "step": step,
            "parameters": parameters_fingerprint,
            "freeze": self._cfg.train.freeze,
        }

    def _begun_from(self) -> dict | None:
        """The start of the run that is here, if it began from this very decoder.

        Then the decoder, whose heads were looked at, need not be loaded again.
        """
        known = (read_json(self._workdir / "run.json") or {}).get("init_from")
        path = Path(self._cfg.init_from)
        if not (known and self._by_decoder and self._cfg.model.cca_layers):
            return None
        if not path.exists():
            return None
        return known if known == self._start(0, fingerprint_of(path)) else None

    def _trained(self) -> frozenset[str] | None:
        """Names of the parameters that are trained; None for all."""
        if not (self._cfg.init_from and self._cfg.train.freeze):
            return None
        names = retrofit.new_names(self._cfg.model)
        if self._cfg.retrofit.trained == "gates" and self._by_decoder:
            return frozenset(name for name in names if name.endswith("/gate_H"))
        return names

    @property
    def _by_decoder(self) -> bool:
        return self._cfg.model.encoder == "decoder"

    @functools.cached_property
    def _encodings(self) -> Encodings | None:
        """What keeps neighbours as the decoder has read them, where that can be kept."""
        cfg = self._cfg
        if not (self._by_decoder and cfg.train.encodings_bytes and cfg.train.freeze):
            return None
        if jax.process_count() > 1:  # each would have to encode the others' rows
            return None
        model, kept = dataclasses.replace(cfg.model), cfg.train
        on_disk = None
        if kept.encodings_folder:
            begun = read_json(self._workdir / "run.json") or {}
            reader = [begun.get("init_from"), repr(model), jax.__version__]
            on_disk = EncodingsFolder(
                Path(kept.encodings_folder).expanduser(),
                kept.encodings_folder_bytes,
                json.dumps([*reader, jax.default_backend()]),
            )
        return Encodings(model, kept.encodings_bytes, on_disk)

    def _first_batch(self) -> dict[str, jax.Array]:
        """What training begins with, on the devices."""
        batch = next(
            self._sequences("train").shuffled(
                self._cfg.train.batch_size,
                seed=self._cfg.train.seed,
                num_steps=1,
                rows=sharding.local_rows(self._cfg.train.batch_size, self._mesh),
            )
        )
        return to_devices(
            dataclasses.replace(self._cfg.model, cca_layers=(1,)),
            model_inputs(batch),
            self._mesh,
        )

    def _batches_from(self, first_step: int) -> Iterator[Batch]:
        """This process's rows of the batches that are left, in the run's order."""
        cfg, sequences = self._cfg, self._sequences("train")
        repeated = cfg.retrofit.distinct_steps if self._by_decoder else 0
        batches = sequences.shuffled(
            cfg.train.batch_size,
            seed=cfg.train.seed,
            first_step=0 if repeated else first_step,
            num_steps=repeated or cfg.train.steps,
            rows=sharding.local_rows(cfg.train.batch_size, self._mesh),
        )
        inputs: Iterator[Batch] = map(model_inputs, batches)
        if repeated:
            again = itertools.cycle(inputs)
            inputs = itertools.islice(again, first_step, cfg.train.steps)
        return map(self._changed, itertools.count(first_step), inputs)

    def _changed(self, step: int, batch: Batch) -> Batch:
        """A batch with the neighbours and the numbers that the settings ask for.

        They are drawn by step, so that a run that goes on draws what it would have drawn.
        """
        cfg, of_retrofit = self._cfg.train, self._cfg.retrofit
        repeated = of_retrofit.distinct_steps if self._by_decoder else 0
        # The same in each pass over the same batches: what was read of them is kept.
        number = step % repeated if repeated else step
        batch = with_oracle_neighbours(
            self._cfg.model,
            batch,
            cfg.oracle_share(step),
            np.random.default_rng((cfg.seed, number)),
        )
        if not self._by_decoder:
            return batch
        if of_retrofit.other_numbers_share:
            batch = with_other_numbers(
                batch,
                of_retrofit.other_numbers_share,
                self._numbers,
                np.random.default_rng((cfg.seed, number, 1)),
            )
        return with_worse_neighbours(
            batch,
            of_retrofit.absent_share,
            of_retrofit.unrelated_share,
            np.random.default_rng((cfg.seed, step)),
        )

    @functools.cached_property
    def _numbers(self) -> NumberTokens:
        """The numbers of the database's tokenizer."""
        tokenizer = self.database.tokenizer
        ids = range(tokenizer.vocab_size)
        return NumberTokens([tokenizer.decode_bytes([token]) for token in ids])

    def _other_run(self, known: dict, identity: dict, restart: bool) -> None:
        """Puts the run that is here aside, refuses to, or goes on with it.

        A run goes on if nothing but the dataset is another: the database was changed.
        """
        differing = _differences(known, identity)
        if restart:
            self._put_aside(differing)
        elif differing != ["the dataset"]:
            raise ValueError(
                f"{self._workdir} holds a run with other settings "
                f"({', '.join(differing)}): use another --workdir, or "
                "--on_other_run=restart to put that run aside and train anew"
            )
        else:
            say(
                "the database has changed since the model was trained: the model is kept, "
                "and goes on with the database as it is now (--on_other_run=restart "
                "trains anew)"
            )

    def _put_aside(self, differing: list[str]) -> None:
        """Moves the files of another run into `previous-N`, while nobody evaluates it."""
        if not processes.is_first():
            return
        aside = next(
            path
            for number in itertools.count(1)
            if not (path := self._workdir / f"previous-{number}").exists()
        )
        with self._sole("evaluating"):
            aside.mkdir()
            for name in _RUN_FILES:
                if (self._workdir / name).exists():
                    os.replace(self._workdir / name, aside / name)
        say(
            f"other settings ({', '.join(differing)}): the old run is now in {aside}; use "
            f"it with --workdir={aside} --database={self.database.folder}"
        )

    def _last_step(self) -> int | None:
        with contextlib.closing(_checkpoints(self._workdir)) as keeper:
            return keeper.latest_step()

    def _parameters(self) -> tuple[dict, parameters.Parameters]:
        """What the newest whole checkpoint says of itself, and its parameters.

        The dataset may be another than it was trained on: with more neighbours, or of a
        database that has changed since.
        """
        now = self._run_identity()
        identity = {**self._cfg.model_identity(), "tokenizer": now["tokenizer"]}
        run, params = _restored(self._cfg, self._mesh, self._workdir, identity)
        if run.get("dataset") != now["dataset"]:
            # Not to standard output, which is for the text that is generated.
            print(
                "the database, or how it is read, has changed since the model was trained",
                file=sys.stderr,
                flush=True,
            )
        return run, params

    def evaluate(self) -> None:
        """Measures retrieval on, off and random on held-out text; writes the report."""
        with self._sole("evaluating"):
            self._evaluate()

    def _evaluate(self) -> None:
        size = self._cfg.evaluation.batch_size
        sharding.check_batch("evaluation.batch_size", size, self._mesh)
        if not self._cfg.evaluation.held_out and not self._has_held_out_text():
            say(f"{self._no_report}: the model is trained, and there is no report")
            return
        is_on = "on" in self._cfg.evaluation.conditions
        if self._is_reported and self._cfg.has_cca and not is_on:
            raise ValueError(
                "the report shows retrieval on, which evaluation.conditions does not name: "
                "add it, or give the results a file of their own "
                "(--config.evaluation.name=NAME)"
            )
        text = self._text()
        sequences = self._sequences_of(text)
        path = self._workdir / "evaluation" / f"{self._name}.json"
        path.parent.mkdir(exist_ok=True)
        results = read_json(path) or {}
        if results.get("fingerprint") == self._judged(self._last_step(), text) and all(
            name in results for name in self._shown()
        ):
            say("evaluation: up to date")
            self._tell(path)
            return
        with goodput.measured(path.parent, writes=processes.is_first()) as stopwatch:
            stopwatch.enter("evaluation")
            results = self._measure(sequences, text, path, results)
            stopwatch.write()
            self._tell(path)

    def _tell(self, path: Path) -> None:
        """Writes the run's report, or says what another measurement has found."""
        if not processes.is_first():
            return
        if self._is_reported:
            report.write(self._workdir, self.database)
        else:
            say(f"{measurement.in_words(read_json(path) or {})}\nresults: {path}")

    @property
    def _name(self) -> str:
        """What the file of results is called."""
        cfg = self._cfg.evaluation
        stem = os.path.basename(os.path.normpath(cfg.held_out)).split(".")[0]
        # The name of a file may be anything.
        plain = re.sub(r"[^\w.-]+", "-", stem).strip("-.") if cfg.held_out else ""
        return cfg.name or plain or _REPORTED

    @property
    def _is_reported(self) -> bool:
        """Whether the report of the run shows what is measured."""
        return self._name == _REPORTED

    def _text(self) -> held_out.Text | None:
        """The text that is searched for anew; None where the dataset holds all that is read."""
        cfg, database = self._cfg.evaluation, self.database
        if cfg.held_out:
            skipped = Skipped()
            reading = Reading(
                self._cfg.data.text_column, self._cfg.data.max_document_bytes
            )
            return held_out.text_of(
                read_documents(cfg.held_out, skipped, reading=reading),
                database.tokenizer,
                database.chunk_len,
                detokenise=cfg.detokenise,
            )
        most = max(cfg.neighbours, default=0)
        is_wide = most > self._cfg.data.num_neighbours
        if cfg.stride_chunks or cfg.database_shares or is_wide or not self._is_reported:
            return held_out.text_of_split(database.snapshot, cfg.split)
        return None

    def _sequences_of(self, text: held_out.Text | None) -> Sequences | held_out.HeldOut:
        cfg = self._cfg
        if text is None:
            return self._sequences(cfg.evaluation.split)
        return held_out.HeldOut(
            text,
            self.database.snapshot,
            cfg.data,
            stride=cfg.evaluation.stride_chunks,
        )

    def _judged(self, step: int | None, text: held_out.Text | None = None) -> str:
        """A fingerprint of what is measured, on what, and how."""
        evaluation = dataclasses.asdict(self._cfg.evaluation)
        told: list = [evaluation, step, self._run_identity()]
        if text is not None:
            told += [text.fingerprint, self.database.fingerprint]
        return fingerprint(told)

    def _shown(self) -> dict[str, Callable]:
        """What the report shows besides conditions, and what makes it."""
        if not self._is_reported:
            return {}
        made_by: dict[str, Callable] = {"samples": self._samples}
        if self._cfg.evaluation.num_facts and self._cfg.has_cca:
            made_by["facts"] = self._facts
        return made_by

    def _measure(
        self,
        sequences: Sequences | held_out.HeldOut,
        text: held_out.Text | None,
        path: Path,
        results: dict,
    ) -> dict:
        """Makes what is missing in the results, and writes them whenever there is more."""
        run, params = self._parameters()
        if processes.is_first() and self._is_reported:
            # How it is measured: in other things it may differ from how it was trained.
            parts = ("data", "evaluation")
            workdirs.record_settings(self._cfg, self._workdir, parts)
        step = run["step"]
        if results.get("fingerprint") != self._judged(step, text):
            results = measurement.conditions(
                measurement.Measured(
                    cfg=self._cfg,
                    params=params,
                    mesh=self._mesh,
                    sequences=sequences,
                    database=self.database,
                    untrained=self._untrained(params),
                    encodings=self._encodings,
                    limits=self._limits(params, step),
                    text=text,
                )
            )
            results |= {"fingerprint": self._judged(step, text), "step": step}
            results |= {"init_from": run.get("init_from")}
            results |= {"settings": dataclasses.asdict(self._cfg.evaluation)}
            _write_if_first(path, results)  # so that what fails below does not cost it
        for name, make in self._shown().items():
            if name not in results:
                results[name] = make(params)
                _write_if_first(path, results)
        return results

    def _limits(self, params: parameters.Parameters, step: int) -> reading.Limits:
        """What a retrofit reads, as it was chosen for the model of this step."""
        if not self._by_decoder:
            return reading.ALL
        path = self._workdir / reading.FILE
        known = read_json(path) or {}
        processes.wait_for_all("the limits of reading are read")
        if known.get("step") != step and not self._is_reported:
            raise ValueError(
                f"{self._workdir} has no limits of reading for step {step}, which are chosen "
                "on the run's own validation split: measure the run as it is first, with "
                f"`retro evaluate --workdir={self._workdir}`"
            )
        if known.get("step") != step:
            _write_if_first(path, {**self._chosen_limits(params), "step": step})
            processes.wait_for_all("the limits of reading are written")
        return reading.limits(self._cfg, self._workdir)

    def _chosen_limits(self, params: parameters.Parameters) -> dict:
        """Limits by the validation split, as JSON; empty if it is not to be asked."""
        cfg = copy.deepcopy(self._cfg)
        cfg.evaluation.split = "validation"
        cfg.evaluation.max_sequences = cfg.retrofit.limit_sequences
        if not cfg.evaluation.max_sequences:
            return {}
        sequences = self._sequences("validation")
        if not len(sequences):
            return {}
        return measurement.choose_limits(
            measurement.Measured(
                cfg=cfg,
                params=params,
                mesh=self._mesh,
                sequences=sequences,
                database=self.database,
                encodings=self._encodings,
            )
        )

    def _untrained(self, params: parameters.Parameters) -> parameters.Parameters | None:
        """The parameters of a retrofit's step 0, where its decoder reads neighbours."""
        cfg = self._cfg
        if not (self._by_decoder and cfg.train.freeze):
            return None
        new = retrofit.new_names(cfg.model)
        backbone = {name: array for name, array in params.items() if name not in new}
        return decoder_start.with_cca(cfg, backbone, self._mesh)

    def _facts(self, params: parameters.Parameters) -> dict:
        """Answers to questions of fact, as the report shows them."""
        asking = facts.Asking(
            cfg=self._cfg,
            params=params,
            mesh=self._mesh,
            tokenizer=self.database.tokenizer,
            encodings=self._encodings,
            limits=reading.limits(self._cfg, self._workdir),
        )
        return facts.measure(asking, self.database, self._workdir / "evaluation")

    def _samples(self, params: parameters.Parameters) -> list[dict]:
        """Continuations of held-out documents, as the report shows them."""
        made = continuations.of_held_out(
            self._cfg, params, self.database, reading.limits(self._cfg, self._workdir)
        )
        found = []
        with Progress("samples", self._cfg.evaluation.num_samples, "texts") as progress:
            for sample in made:
                found.append(sample)
                progress.advance(1)
        return found

    def trained(self) -> parameters.Parameters:
        """The parameters of the newest whole checkpoint."""
        _, params = self._parameters()
        return params

    def generate(self) -> None:
        """Continues the prompt and prints the text with its sources."""
        params = self.trained()
        _generate(self._cfg, params, self.database, self._workdir)


def _differences(known: dict, identity: dict) -> list[str]:
    """What another run was made with, and this one is, in words."""
    found = []
    for part in {**identity, **known}:
        before, now = known.get(part), identity.get(part)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            found += [
                f"{part}.{name} is {before.get(name)!r} there and {now.get(name)!r} here"
                for name in {**before, **now}
                if before.get(name) != now.get(name)
            ]
        elif part in ("dataset", "tokenizer"):  # their fingerprints say nothing
            found.append(f"the {part}")
        else:
            found.append(f"{part} is {before!r} there and {now!r} here")
    return found


def _write_if_first(path: Path, results: dict) -> None:
    """Writes JSON in process 0 alone: all processes share the workdir."""
    if processes.is_first():
        write_json(path, results)


def trained_with(
    cfg: Experiment, workdir: Path, database: RemoteDatabase
) -> parameters.Parameters:
    """The parameters of a run, for which a service finds passages.

    Raises:
        ValueError: if the model in the workdir was not trained with the tokenizer and the
            chunk length of the service's database, or with other settings.
    """
    _check_chunk_len(cfg, database.address, database.chunk_len)
    run = read_json(workdir / "run.json") or {}
    database.check_trained_with(run.get("tokenizer"), workdir)
    cfg.set_vocab_size(database.tokenizer.vocab_size)
    identity = {**cfg.model_identity(), "tokenizer": database.tokenizer.fingerprint}
    mesh = sharding.make_mesh(cfg.mesh)
    _, params = _restored(cfg, mesh, workdir, identity)
    return params


def generate_from_service(
    cfg: Experiment, workdir: Path, database: RemoteDatabase
) -> None:
    """Continues the prompt, as `Job.generate` does, with passages that a service finds.

    Raises as `trained_with`.
    """
    params = trained_with(cfg, workdir, database)
    _generate(cfg, params, database, workdir)


def trained_model(
    cfg: Experiment, workdir: Path
) -> tuple[Tokenizer, parameters.Parameters]:
    """The tokenizer and the parameters of a run, for which no database is needed.

    Raises:
        ValueError: if the workdir holds no model, or no tokenizer.
    """
    path = workdir / _TOKENIZER
    if not path.exists():  # a run of before this file was written
        path = workdir / "database" / "tokenizer" / "all" / _TOKENIZER
    if not path.exists():
        raise ValueError(
            f"{workdir} has no {_TOKENIZER}, without which there is no text: copy the "
            "database's tokenizer/all/tokenizer.model there"
        )
    tokenizer = Tokenizer.load(path)
    cfg.set_vocab_size(tokenizer.vocab_size)
    identity = {**cfg.model_identity(), "tokenizer": tokenizer.fingerprint}
    _, params = _restored(cfg, sharding.make_mesh(cfg.mesh), workdir, identity)
    return tokenizer, params


def generate_without_retrieval(cfg: Experiment, workdir: Path) -> None:
    """Continues the prompt with no passages: needs neither a database nor a service.

    Raises:
        ValueError: if the workdir holds no model, or no tokenizer.
    """
    tokenizer, params = trained_model(cfg, workdir)
    say("retrieval is off: the model reads no passages")
    _generate(cfg, params, NoDatabase(tokenizer), workdir)


def _take_chosen_layers(cfg: Experiment, workdir: Path) -> None:
    """Takes what a run that was made before chose for its decoder, if `cfg` leaves it open."""
    kept = workdirs.kept_settings(workdir)
    chosen = kept.get("model", {}).get("cca_layers", ())
    if cfg.model.encoder != "decoder" or cfg.model.cca_layers or not chosen:
        return
    cfg.model.cca_layers = tuple(chosen)
    if not cfg.retrofit.open_heads:
        heads = kept.get("retrofit", {}).get("open_heads", ())
        cfg.retrofit.open_heads = tuple(tuple(layer) for layer in heads)


def _check_chunk_len(cfg: Experiment, database: object, chunk_len: int) -> None:
    """Raises ValueError if the database's chunks are not those that the model reads."""
    if chunk_len != cfg.model.chunk_len:
        raise ValueError(
            f"{database} has chunks of {chunk_len} tokens, model.chunk_len is "
            f"{cfg.model.chunk_len}"
        )


def _checkpoints(workdir: Path) -> checkpoints.Checkpoints:
    """The checkpoints of a run, to be read."""
    return checkpoints.Checkpoints(workdir / "checkpoints", keep=None)


def _restored(
    cfg: Experiment, mesh: jax.sharding.Mesh, workdir: Path, identity: dict
) -> tuple[dict, parameters.Parameters]:
    """What the newest whole checkpoint says of itself, and its parameters."""
    shapes = jax.eval_shape(
        functools.partial(parameters.initial_parameters, cfg.model, 0)
    )
    shardings = sharding.state_shardings(shapes, mesh)
    wanted = {"params": checkpoints.abstract(shapes, shardings)}
    with contextlib.closing(_checkpoints(workdir)) as keeper:
        step, restored = keeper.restore(wanted, identity, part=True)
        run, newest = keeper.run_of(step), keeper.latest_step()
    if step != newest:
        damaged = workdir / "checkpoints" / str(newest)
        say(f"using step {step}; to train again what came after, delete {damaged}")
    return run, restored["params"]


def _generate(
    cfg: Experiment,
    params: parameters.Parameters,
    database: Database | RemoteDatabase | NoDatabase,
    workdir: Path,
) -> None:
    limits = reading.limits(cfg, workdir)
    prompt = cfg.evaluation.prompt
    sample = continuations.continuation(cfg, params, database, prompt, limits)
    continuations.print_continuation(sample, say)
