"""The loss, the step and the loop.

Who calls it gives a mesh, an iterator of host batches for a range of steps, and a folder.
Data must depend on (seed, step) alone: then a run that was stopped goes on bit for bit.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from retro_jax import checkpoints, metrics, preemption, sharding, state
from retro_jax.config import ModelConfig, OptimizerConfig, TrainConfig
from retro_jax.optimizer import learning_rate, make_optimizer

Batch = dict[str, np.ndarray]
TrainState = dict  # {"params": name -> array, "optimizer": optax's, its slots by name}


def token_losses(
    cfg: ModelConfig, params: state.Parameters, batch, *, retrieval: bool = True
) -> Float[Array, "B L"]:
    """Loss of every target in nats; what has no weight must be masked by the caller.

    Without `retrieval` the neighbours of the batch are not looked at.
    """
    logits_BLV = state.rebuild(cfg, params)(
        batch["inputs_BL"],
        batch["neighbours_BCNR"] if retrieval else None,
        batch["neighbour_lengths_BCN"] if retrieval else None,
        batch["segments_BL"],
    )
    return optax.softmax_cross_entropy_with_integer_labels(
        logits_BLV, batch["targets_BL"]
    )


def summed_loss(cfg: ModelConfig, params: state.Parameters, batch):
    """Weighted loss of a batch in nats, and what it was summed over."""
    weights_BL = batch["loss_weights_BL"]
    loss_nats = jnp.sum(token_losses(cfg, params, batch) * weights_BL)
    num_bytes = jnp.sum(batch["target_bytes_BL"] * weights_BL)
    return loss_nats, {
        "loss_nats": loss_nats,
        "tokens": jnp.sum(weights_BL),
        "bytes": num_bytes,
    }


def accumulated_gradients(cfg: ModelConfig, params, batch, accumulation: int):
    """Gradients of the summed loss, one micro-batch after the other.

    Sums, not means: so the result does not depend on how tokens fall into micro-batches.
    """
    gradient = jax.grad(functools.partial(summed_loss, cfg), has_aux=True)
    if accumulation == 1:
        return gradient(params, batch)

    def add(total, micro_batch):
        return jax.tree.map(jnp.add, total, gradient(params, micro_batch)), None

    micro_batches = {
        name: array.reshape(-1, accumulation, *array.shape[1:]).swapaxes(0, 1)
        for name, array in batch.items()
    }
    zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], micro_batches)),
    )
    return jax.lax.scan(add, zero, micro_batches)[0]


def train_step(
    model_cfg: ModelConfig,
    optimizer: optax.GradientTransformation,
    accumulation: int,
    train_state: TrainState,
    batch,
):
    """One update. Returns the new state and the batch's sums.

    If the loss or the gradient norm is not finite the state stays as it was, with all the
    optimizer's slots and counts: its schedule counts the updates that were made, not the
    batches that were seen. Ours: one bad batch in weeks should cost one step.
    """
    params = train_state["params"]
    gradients, sums = accumulated_gradients(model_cfg, params, batch, accumulation)
    tokens = jnp.maximum(sums["tokens"], 1.0)
    gradients = jax.tree.map(lambda g: g / tokens, gradients)
    sums["gradient_norm"] = optax.tree.norm(gradients)
    updates, slots = optimizer.update(gradients, train_state["optimizer"], params)
    new_state = {"params": optax.apply_updates(params, updates), "optimizer": slots}
    finite = jnp.isfinite(sums["loss_nats"]) & jnp.isfinite(sums["gradient_norm"])
    new_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), new_state, train_state
    )
    return new_state, sums | {"updates": updates_made(new_state)}


def updates_made(train_state: TrainState) -> jax.Array:
    """How many updates have been made, by the optimizer's own counts."""
    counts = optax.tree.get_all_with_path(train_state["optimizer"], "count")
    return functools.reduce(jnp.maximum, [count for _, count in counts])


def initial_state(cfg: ModelConfig, optimizer, seed: int) -> TrainState:
    params = state.initial_parameters(cfg, seed)
    return {"params": params, "optimizer": optimizer.init(params)}


def train(
    model_cfg: ModelConfig,
    optimizer_cfg: OptimizerConfig,
    cfg: TrainConfig,
    mesh,
    batches_from: Callable[[int], Iterator[Batch]],
    workdir: Path,
    run: dict,
) -> TrainState:
    """Trains to `cfg.steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
        batches_from: batches from a step on, the rows of this process.
        workdir: gets `checkpoints/` and `metrics/`.
        run: JSON that a checkpoint must agree with to be gone on from.
    Raises:
        ValueError: for a checkpoint of another run, before anything is compiled.
        FloatingPointError: if more than `cfg.max_skipped_steps` steps in a row have a loss
            or a gradient that is not finite; names the step.
        preemption.Preempted: after SIGTERM, once the checkpoint is on disk.
        OSError: if a checkpoint can't be written.
    """
    optimizer = make_optimizer(optimizer_cfg, cfg.steps)
    make_state = functools.partial(initial_state, model_cfg, optimizer, cfg.seed)
    shapes = jax.eval_shape(make_state)
    shardings = sharding.state_shardings(shapes, mesh)
    keeper = checkpoints.Checkpoints(workdir / "checkpoints", keep=cfg.keep_checkpoints)
    with contextlib.closing(keeper), jax.set_mesh(mesh):
        if keeper.latest_step() is None:
            step, train_state = 0, jax.jit(make_state, out_shardings=shardings)()
        else:
            wanted = checkpoints.abstract(shapes, shardings)
            step, train_state = keeper.restore(wanted, run)
        metrics.say(_opening_line(train_state, step, cfg.steps))
        update = jax.jit(
            functools.partial(train_step, model_cfg, optimizer, cfg.accumulation),
            donate_argnums=0,
            out_shardings=(shardings, None),
        )
        logger = _Logger(workdir / "metrics", optimizer_cfg, cfg, step)
        with contextlib.closing(logger), preemption.watch() as reached:
            batches = batches_from(step)
            while step < cfg.steps:
                batch = logger.waiting_for(lambda: next(batches))
                on_devices = sharding.to_devices(batch, mesh)
                train_state, sums = update(train_state, on_devices)
                step += 1
                logger.after_step(step, sums)
                keeper.check()
                stop = reached(step)
                if stop or step % cfg.checkpoint_every == 0 or step == cfg.steps:
                    logger.flush()  # stops here if too many steps were not finite
                    keeper.save(step, train_state, {**run, "step": step})
                if stop and step < cfg.steps:
                    keeper.wait()
                    raise preemption.Preempted(step)
    return train_state


def _opening_line(train_state: TrainState, step: int, steps: int) -> str:
    params = train_state["params"]
    millions = state.num_parameters(params) / 1e6
    doing = "training" if step == 0 else f"going on from step {step}"
    return f"{millions:.1f}M parameters; {doing} to step {steps}"


class _Logger:
    """Collects the sums of steps and writes them every `log_every` steps.

    The sums of a step are read once the next one has been started, so that looking at
    them does not hold up the device.
    """

    def __init__(self, folder, optimizer_cfg, cfg: TrainConfig, first_step: int):
        self._cfg = cfg
        self._schedule = learning_rate(optimizer_cfg, cfg.steps)
        # All processes know the same numbers; the first writes them.
        self._writer = (
            metrics.MetricsWriter(folder, first_step=first_step)
            if jax.process_index() == 0
            else None
        )
        self._rate = metrics.Rate()
        self._began_s, self._first_step = time.perf_counter(), first_step
        self._pending: tuple[int, dict] | None = None
        self._totals: dict[str, float] = {}
        self._waited_s = 0.0
        self._updates, self._skipped_in_a_row = 0, 0
        self._gradient_norm = math.nan  # of the last update since the last line

    def waiting_for(self, get: Callable[[], Batch]) -> Batch:
        start_s = time.perf_counter()
        batch = get()
        self._waited_s = time.perf_counter() - start_s
        return batch

    def after_step(self, step: int, sums: dict) -> None:
        waited_s = self._waited_s
        self.flush()
        self._pending = (step, sums)
        self._totals["waited_s"] = waited_s

    def flush(self) -> None:
        """Reads the sums of the last step.

        Raises:
            FloatingPointError: if too many steps in a row were not finite.
        """
        if self._pending is None:
            return
        step, sums = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(sums).items()}
        self._updates = int(values["updates"])
        tokens, waited_s = values["tokens"], self._totals.pop("waited_s", 0.0)
        self._rate.add(int(tokens) if math.isfinite(tokens) else 0, waited_s)
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
            self._write(step)

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

    def _write(self, step: int) -> None:
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
            **self._rate.take(),
        }
        if self._writer is not None:
            self._writer.write(step, values)
        done = step - self._first_step
        elapsed_s = time.perf_counter() - self._began_s
        left_s = elapsed_s / done * (self._cfg.steps - step)
        metrics.say(
            f"step {step}/{self._cfg.steps}  {values['bits_per_byte']:.3f} bits/byte  "
            f"{values['tokens_per_s']:,.0f} tokens/s  "
            f"waiting for data {values['waiting_for_data_share']:.0%}  "
            f"{metrics.duration(left_s)} left"
        )

    def close(self) -> None:
        try:
            self.flush()
        finally:
            if self._writer is not None:
                self._writer.close()
