"""The training of a run: from what it starts, and the batches that it sees."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int

from data_pipeline.storage.files import read_json
from data_pipeline.storage.progress import say
from experiments.jobs import decoder_start
from experiments.jobs.run import Run
from retro_jax.devices import sharding
from retro_jax.pretrained import fingerprint_of
from retro_jax.runs import wandb_run
from retro_jax.training import retrofit
from retro_jax.training.batch import (
    Batch,
    Rows,
    model_inputs,
    to_devices,
    with_oracle_neighbours,
    with_other_numbers,
    with_worse_neighbours,
)
from retro_jax.training.loop import train
from retro_jax.training.number_tokens import NumberTokens


class Training:
    """What trains a run."""

    def __init__(self, run: Run):
        """Nothing is read or written yet."""
        self._run, self._cfg = run, run.cfg

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
        with self._run.sole("training"):
            identity = self._run.begin(begun_from or self._start_of(baseline), restart)
            done, steps = self._run.last_step() or 0, self._cfg.train.steps
            if done >= steps:
                say(
                    f"training: up to date, {done} steps are done, of {steps} asked for"
                )
                return
            # A wrong dataset is refused before anything is compiled.
            self._run.sequences("train")
            if begun_from and not done:
                baseline = self._baseline()
            backbone = baseline.params if baseline is not None and not done else None
            del baseline  # a run that goes on has its own copy
            train(
                self._cfg.model,
                self._cfg.optimizer,
                self._cfg.train,
                self._run.mesh,
                self.batches_from,
                self._run.workdir,
                {name: made for name, made in identity.items() if name != "dataset"},
                told={"dataset": identity["dataset"]},
                trained=self._trained(),
                backbone=backbone,
                encodings=self._run.encodings,
                watch=self._cfg.watch,
                saved=saved,
            )

    def _baseline(self) -> retrofit.Baseline | None:
        """What a retrofit starts from; checked and read even by one that goes on."""
        if not self._cfg.init_from:
            return None
        if self._cfg.model.encoder == "decoder":
            return decoder_start.start(self._cfg, self._run.mesh, self.first_batch)
        path = Path(self._cfg.init_from).expanduser().resolve()
        own = self._run.workdir.resolve()
        if path == own or path.is_relative_to(own / "checkpoints"):
            raise ValueError(
                f"init_from {path} is this run's own folder: give the retrofit another "
                "--workdir (and --database, if that lies in the baseline's)"
            )
        baseline = retrofit.load(
            path, self._cfg.model, self._run.mesh, self._run.identity()
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
        known = (read_json(self._run.workdir / "run.json") or {}).get("init_from")
        path = Path(self._cfg.init_from)
        if not (known and self._run.by_decoder and self._cfg.model.cca_layers):
            return None
        if not path.exists():
            return None
        return known if known == self._start(0, fingerprint_of(path)) else None

    def _trained(self) -> frozenset[str] | None:
        """Names of the parameters that are trained; None for all."""
        if not (self._cfg.init_from and self._cfg.train.freeze):
            return None
        names = retrofit.new_names(self._cfg.model)
        if self._cfg.retrofit.trained == "gates" and self._run.by_decoder:
            return frozenset(name for name in names if name.endswith("/gate_H"))
        return names

    def first_batch(self) -> dict[str, jax.Array]:
        """What training begins with, on the devices."""
        batch = next(
            self._run.sequences("train").shuffled(
                self._cfg.train.batch_size,
                seed=self._cfg.train.seed,
                num_steps=1,
                rows=self._rows(),
            )
        )
        return to_devices(
            dataclasses.replace(self._cfg.model, cca_layers=(1,)),
            model_inputs(batch),
            self._run.mesh,
        )

    def batches_from(self, first_step: int) -> Iterator[Batch]:
        """This process's rows of the batches that are left, in the run's order."""
        cfg, sequences = self._cfg, self._run.sequences("train")
        repeated = cfg.retrofit.distinct_steps if self._run.by_decoder else 0
        batches = sequences.shuffled(
            cfg.train.batch_size,
            seed=cfg.train.seed,
            first_step=0 if repeated else first_step,
            num_steps=repeated or cfg.train.steps,
            rows=self._rows(),
        )
        inputs: Iterator[Batch] = map(model_inputs, batches)
        if repeated:
            again = itertools.cycle(inputs)
            inputs = itertools.islice(again, first_step, cfg.train.steps)
        return map(self._changed, itertools.count(first_step), inputs)

    def _rows(self) -> Int[np.ndarray, " B"]:
        """This process's rows of a batch."""
        return sharding.local_rows(self._cfg.train.batch_size, self._run.mesh)

    def _changed(self, step: int, batch: Batch) -> Batch:
        """A batch with the neighbours and the numbers that the settings ask for.

        They are drawn by step, so that a run that goes on draws what it would have drawn.
        """
        cfg, of_retrofit = self._cfg.train, self._cfg.retrofit
        repeated = of_retrofit.distinct_steps if self._run.by_decoder else 0
        rows = Rows(cfg.batch_size, self._rows())
        # The same in each pass over the same batches: what was read of them is kept.
        number = step % repeated if repeated else step
        batch = with_oracle_neighbours(
            self._cfg.model,
            batch,
            cfg.oracle_share(step),
            np.random.default_rng((cfg.seed, number)),
            rows,
        )
        if not self._run.by_decoder:
            return batch
        if of_retrofit.other_numbers_share:
            batch = with_other_numbers(
                batch,
                of_retrofit.other_numbers_share,
                self._numbers,
                np.random.default_rng((cfg.seed, number, 1)),
                rows,
            )
        return with_worse_neighbours(
            batch,
            of_retrofit.absent_share,
            of_retrofit.unrelated_share,
            np.random.default_rng((cfg.seed, step)),
            rows,
            are_told=of_retrofit.unrelated_target == "off",
        )

    @functools.cached_property
    def _numbers(self) -> NumberTokens:
        """The numbers of the database's tokenizer."""
        tokenizer = self._run.database.tokenizer
        ids = range(tokenizer.vocab_size)
        return NumberTokens([tokenizer.decode_bytes([token]) for token in ids])
