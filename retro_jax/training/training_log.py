"""The log of a run's steps: lines for the person who watches, numbers for later."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import jax

from retro_jax.config import OptimizerConfig, TrainConfig, WatchConfig
from retro_jax.runs import goodput, metrics
from retro_jax.runs.profiler import Profile
from retro_jax.training.optimizer import learning_rate

T = TypeVar("T")
_NO_MORE = WatchConfig()


class TrainingLog:
    """Collects the sums of steps and writes them every `log_every` steps.

    The sums of a step are read once the next one has been started, so that looking at
    them does not hold up the device.
    """

    def __init__(
        self,
        folder: Path,
        optimizer_cfg: OptimizerConfig,
        cfg: TrainConfig,
        first_step: int,
        stopwatch: goodput.Stopwatch | None = None,
        watch: WatchConfig = _NO_MORE,
        settings: Mapping = MappingProxyType({}),
        *,
        clock=time.perf_counter,
    ):
        """Opens the files.

        Args:
            stopwatch: counts the run's time; one of its own, if not given.
            watch: what else is shown of the run.
            settings: the run's, as JSON, for those who show them beside its numbers.
        """
        self._cfg, self._clock = cfg, clock
        self.stopwatch = stopwatch or goodput.Stopwatch(None)
        self._schedule = learning_rate(optimizer_cfg, cfg.steps)
        writes = jax.process_index() == 0
        self._writer = metrics.MetricsWriter(
            folder, first_step=first_step, writes=writes, watch=watch, settings=settings
        )
        self._profile = Profile(folder, watch.profile_steps, writes=writes)
        self._rate = metrics.Rate(clock)
        self._began_s, self._first_step = clock(), first_step
        self._pending: tuple[int, dict, tuple[float, float] | None] | None = None
        self._totals: dict[str, float] = {}
        self._updates, self._skipped_in_a_row = 0, 0
        self._gradient_norm = math.nan  # of the last update since the last line

    def timed(self, get: Callable[[], T]) -> T:
        """Gives what `get` gives, and counts its time as time spent waiting for data."""
        start_s = self._clock()
        with self.stopwatch.part("data"):
            batch = get()
        self._rate.add(waited_s=self._clock() - start_s)
        return batch

    def step(self, step: int) -> contextlib.AbstractContextManager[None]:
        """The block that is a step; traced, if that was asked for."""
        return self._profile.around(step)

    def after_step(self, step: int, sums: dict) -> None:
        """Takes the sums of a step, which need not be done yet."""
        self._profile.after(step, sums)
        self.stopwatch.reached(step)
        self.flush()
        # Where steps are computed at once, this one is done before the next is waited for.
        is_done = all(value.is_ready() for value in jax.tree.leaves(sums))
        self._pending = (step, sums, self._rate.moment() if is_done else None)

    def flush(self) -> None:
        """Reads the sums of the last step.

        Raises:
            FloatingPointError: if too many steps in a row were not finite.
        """
        if self._pending is None:
            return
        step, sums, done = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(sums).items()}
        self._updates = int(values["updates"])
        tokens = values["tokens"]
        self._rate.add(tokens=int(tokens) if math.isfinite(tokens) else 0)
        if math.isfinite(values["loss_nats"]) and math.isfinite(
            values["gradient_norm"]
        ):
            self._skipped_in_a_row = 0
            self._gradient_norm = values["gradient_norm"]
            for name in ("loss_nats", "tokens", "bytes"):
                self._totals[name] = self._totals.get(name, 0.0) + values[name]
        else:
            self._count_skipped(step, values)
        if step % self._cfg.log_every == 0 or step == self._cfg.steps:
            self._write(step, done or self._rate.moment())

    def _count_skipped(self, step: int, values: dict[str, float]) -> None:
        self._skipped_in_a_row += 1
        most = self._cfg.max_skipped_steps
        what = (
            f"the loss of step {step} is {values['loss_nats']}, its gradient norm "
            f"{values['gradient_norm']}"
        )
        if self._skipped_in_a_row > most:
            raise FloatingPointError(
                f"{what}, the {self._skipped_in_a_row}. such step in a row "
                f"(train.max_skipped_steps={most}). The parameters and the newest "
                "checkpoint are from before; try a lower optimizer.learning_rate, or "
                "float32"
            )
        metrics.say(
            f"{what}: not applied ({self._skipped_in_a_row} of {most} in a row)"
        )

    def _write(self, step: int, until: tuple[float, float]) -> None:
        totals, self._totals = self._totals, {}
        totals = {"loss_nats": math.nan, "tokens": 0.0, "bytes": 0.0} | totals
        gradient_norm, self._gradient_norm = self._gradient_norm, math.nan
        values = {
            "loss_nats_per_token": totals["loss_nats"] / max(totals["tokens"], 1.0),
            "bits_per_byte": metrics.bits_per_byte(
                totals["loss_nats"], totals["bytes"]
            ),
            "gradient_norm": gradient_norm,
            # Of the last update; the schedule counts updates.
            "learning_rate": float(self._schedule(max(self._updates - 1, 0))),
            "skipped_steps": step - self._updates,
            **self._rate.take(until),
        }
        self._writer.write(step, values)
        done = step - self._first_step
        elapsed_s = self._clock() - self._began_s
        left_s = elapsed_s / done * (self._cfg.steps - step)
        metrics.say(
            f"step {step}/{self._cfg.steps}  {values['bits_per_byte']:.3f} bits/byte  "
            f"{values['tokens_per_s']:,.0f} tokens/s  "
            f"waiting for data {values['waiting_for_data_share']:.0%}  "
            f"{metrics.duration(left_s)} left"
        )

    def close(self) -> None:
        """Reads the last step's sums, and closes the files whatever they say."""
        try:
            self.flush()
        finally:
            self._profile.close()
            self._writer.close()
