"""A run: its settings, its folder, its database, and whether what lies there is this run's."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from data_pipeline.database import Database
from data_pipeline.sequences.batches import Sequences, num_neighbours
from data_pipeline.storage import locks
from data_pipeline.storage.files import read_json, write_file, write_json
from data_pipeline.storage.progress import say
from experiments import workdirs
from experiments.config import Experiment
from experiments.jobs import reading
from retro_jax.devices import processes, sharding
from retro_jax.model import parameters
from retro_jax.runs import checkpoints
from retro_jax.training.encodings import Encodings
from retro_jax.training.encodings_folder import EncodingsFolder

TOKENIZER = "tokenizer.model"
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


class Run:
    """Settings, the folder that is theirs, and the database that they read."""

    def __init__(self, cfg: Experiment, workdir: Path, database: Path):
        """Raises ValueError if there is no database or it was made for other settings."""
        self.cfg, self.workdir = cfg, workdir
        self.database = Database.open(database)
        check_chunk_len(cfg, database, self.database.chunk_len)
        cfg.set_vocab_size(self.database.manifest["vocab_size"])
        _take_chosen_layers(cfg, workdir)
        self.mesh = sharding.make_mesh(cfg.mesh)

    def sequences(self, split: str) -> Sequences:
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
        found = Sequences(folder, split, self.cfg.data.num_neighbours)
        if found.metadata.get("database") != self.database.fingerprint:
            raise ValueError(
                f"{self.database.folder}/dataset was made from another version of the "
                f"database ({found.metadata.get('database')}, this one is "
                f"{self.database.fingerprint}): bring it up to date with `retro database` "
                "and the same --corpus, --workdir or --database"
            )
        made_for, cfg = found.metadata["data"], self.cfg.data
        for name, value in made_for.items():
            wanted = getattr(cfg, name)
            has_enough = name == "num_neighbours" and wanted < value
            if wanted != value and not has_enough:
                raise ValueError(
                    f"the dataset was made with data.{name}={value}, this run has "
                    f"{wanted}: build the database again"
                )
        return found

    def identity(self) -> dict:
        """What a checkpoint must agree with to be gone on from, as JSON."""
        folder, reads = self.database.folder / "dataset", self.cfg.data.num_neighbours
        made = {
            **self.cfg.identity(),
            "dataset": (read_json(folder / "stage.json") or {}).get("contents"),
            "tokenizer": self.database.manifest["tokenizer_fingerprint"],
        }
        if reads < (num_neighbours(folder / "all") or 0):  # else the dataset says it
            made["num_neighbours"] = reads
        return made

    def begin(self, init_from: object, restart: bool) -> dict:
        """Makes the folder this run's, if it is not another's; gives the run's identity."""
        identity = self.identity() | {"init_from": init_from}
        marker = self.workdir / "run.json"
        known = read_json(marker)
        processes.wait_for_all("run.json is read")
        if known is not None and known != identity:
            self._other_run(known, identity, restart)
        if processes.is_first():
            write_json(marker, identity)
            workdirs.record_settings(self.cfg, self.workdir)
            # So that the model can write without a database.
            write_file(self.workdir / TOKENIZER, self.database.tokenizer.model)
        processes.wait_for_all("run.json is written")
        if read_json(marker) != identity:
            raise ValueError(
                f"{self.workdir} is not the folder of process 0: all processes need a "
                "--workdir on storage that they share, and the same settings"
            )
        if not self.has_held_out_text():
            say(f"{self.no_report}: there will be a model and no report")
        return identity

    def _other_run(self, known: dict, identity: dict, restart: bool) -> None:
        """Puts the run that is here aside, refuses to, or goes on with it.

        A run goes on if nothing but the dataset is another: the database was changed.
        """
        differing = _differences(known, identity)
        if restart:
            self._put_aside(differing)
        elif differing != ["the dataset"]:
            raise ValueError(
                f"{self.workdir} holds a run with other settings "
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
            if not (path := self.workdir / f"previous-{number}").exists()
        )
        with self.sole("evaluating"):
            aside.mkdir()
            for name in _RUN_FILES:
                if (self.workdir / name).exists():
                    os.replace(self.workdir / name, aside / name)
        say(
            f"other settings ({', '.join(differing)}): the old run is now in {aside}; use "
            f"it with --workdir={aside} --database={self.database.folder}"
        )

    @contextlib.contextmanager
    def sole(self, doing: str) -> Iterator[None]:
        """Keeps other processes from doing the same in this workdir meanwhile."""
        if not processes.is_first():  # the first one speaks for all of its run
            yield
            return
        with locks.locked(self.workdir / f".{doing}", f"{doing} in"):
            yield

    def has_held_out_text(self) -> bool:
        """Whether there is anything to measure the model on."""
        return self.database.manifest["chunks"][self.cfg.evaluation.split] > 0

    @property
    def no_report(self) -> str:
        split = self.cfg.evaluation.split
        return (
            f"the {split} split has no text (for a report give more text, or a larger "
            f"data.{split}_share)"
        )

    @property
    def by_decoder(self) -> bool:
        return self.cfg.model.encoder == "decoder"

    @functools.cached_property
    def encodings(self) -> Encodings | None:
        """What keeps neighbours as the decoder has read them, where that can be kept."""
        cfg = self.cfg
        if not (self.by_decoder and cfg.train.encodings_bytes and cfg.train.freeze):
            return None
        if jax.process_count() > 1:  # each would have to encode the others' rows
            return None
        model, kept = dataclasses.replace(cfg.model), cfg.train
        on_disk = None
        if kept.encodings_folder:
            begun = read_json(self.workdir / "run.json") or {}
            reader = [begun.get("init_from"), repr(model), jax.__version__]
            on_disk = EncodingsFolder(
                Path(kept.encodings_folder).expanduser(),
                kept.encodings_folder_bytes,
                json.dumps([*reader, jax.default_backend()]),
            )
        return Encodings(model, kept.encodings_bytes, on_disk)

    def last_step(self) -> int | None:
        with contextlib.closing(_checkpoints(self.workdir)) as keeper:
            return keeper.latest_step()

    def restored(self) -> tuple[dict, parameters.Parameters]:
        """What the newest whole checkpoint says of itself, and its parameters.

        The dataset may be another than it was trained on: with more neighbours, or of a
        database that has changed since.
        """
        now = self.identity()
        identity = {**self.cfg.model_identity(), "tokenizer": now["tokenizer"]}
        run, params = restore(self.cfg, self.mesh, self.workdir, identity)
        if run.get("dataset") != now["dataset"]:
            # Not to standard output, which is for the text that is generated.
            print(
                "the database, or how it is read, has changed since the model was trained",
                file=sys.stderr,
                flush=True,
            )
        return run, params


def restore(
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


def _checkpoints(workdir: Path) -> checkpoints.Checkpoints:
    """The checkpoints of a run, to be read."""
    return checkpoints.Checkpoints(workdir / "checkpoints", keep=None)


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


def _take_chosen_layers(cfg: Experiment, workdir: Path) -> None:
    """Takes what a run that was made before chose for its decoder, if `cfg` leaves it open."""
    kept = workdirs.kept_settings(workdir)
    chosen = tuple(kept.get("model", {}).get("cca_layers", ()))
    if cfg.model.encoder != "decoder" or not chosen:
        return
    cfg.model.cca_layers = cfg.model.cca_layers or chosen
    # Layers that were named by hand have heads that were chosen.
    if cfg.model.cca_layers == chosen and not cfg.retrofit.open_heads:
        heads = kept.get("retrofit", {}).get("open_heads", ())
        cfg.retrofit.open_heads = tuple(tuple(layer) for layer in heads)


def check_chunk_len(cfg: Experiment, database: object, chunk_len: int) -> None:
    """Raises ValueError if the database's chunks are not those that the model reads."""
    if chunk_len != cfg.model.chunk_len:
        raise ValueError(
            f"{database} has chunks of {chunk_len} tokens, model.chunk_len is "
            f"{cfg.model.chunk_len}"
        )
