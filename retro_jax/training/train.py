"""The loss, the step and the loop.

Who calls it gives a mesh, an iterator of host batches for a range of steps, and a folder.
Data must depend on (seed, step) alone: then a run that was stopped goes on bit for bit.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from retro_jax.config import ModelConfig, OptimizerConfig, TrainConfig
from retro_jax.devices import sharding
from retro_jax.devices.compiled import compiled
from retro_jax.model import parameters
from retro_jax.numerics.token_loss import cross_entropy
from retro_jax.runs import checkpoints, metrics, preemption
from retro_jax.training import retrofit
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.training_log import StepLog

Batch = dict[str, np.ndarray]
TrainState = dict  # {"params": name -> array, "optimizer": optax's, its slots by name}


def without_neighbours(batch: Batch) -> Batch:
    """The batch as retrieval off reads it: the step of the decoder alone."""
    gone = ("neighbours_BCNR", "neighbour_lengths_BCN")
    return {name: array for name, array in batch.items() if name not in gone}


def to_devices(cfg: ModelConfig, batch: Batch, mesh) -> dict[str, jax.Array]:
    """Global arrays of this process's rows; neighbours only if the model can read any.

    So a batch whose neighbours are all absent costs what it does without retrieval, in a
    step that is compiled when the first such batch comes. Where several processes share
    the devices none knows the others' rows, and all must run the same step: there it is
    for whoever makes the batches to leave out what is absent in all, else it is masked.
    """
    lengths_BCN = batch.get("neighbour_lengths_BCN")
    absent = lengths_BCN is None or (jax.process_count() == 1 and not lengths_BCN.any())
    if absent or not cfg.cca_layers:
        batch = without_neighbours(batch)
    return sharding.to_devices(batch, mesh)


def token_losses(
    cfg: ModelConfig, params: parameters.Parameters, batch
) -> Float[Array, "B L"]:
    """Loss of every target in nats; what has no weight must be masked by the caller.

    The batch may be one `without_neighbours`.
    """
    logits_BLV = parameters.rebuild(cfg, params)(
        batch["inputs_BL"],
        batch.get("neighbours_BCNR"),
        batch.get("neighbour_lengths_BCN"),
        batch["segments_BL"],
    )
    return cross_entropy(logits_BLV, batch["targets_BL"])


def summed_loss(cfg: ModelConfig, params: parameters.Parameters, batch):
    """Weighted loss of a batch in nats, and what it was summed over."""
    weights_BL = batch["loss_weights_BL"]
    loss_nats = jnp.sum(token_losses(cfg, params, batch) * weights_BL)
    num_bytes = jnp.sum(batch["target_bytes_BL"] * weights_BL)
    return loss_nats, {
        "loss_nats": loss_nats,
        "tokens": jnp.sum(weights_BL),
        "bytes": num_bytes,
    }


def accumulated_gradients(
    cfg: ModelConfig, params, batch, accumulation: int, frozen=None
):
    """Gradients of the summed loss by `params`, one micro-batch after the other.

    Sums, not means: so the result does not depend on how tokens fall into micro-batches.
    The `frozen` parameters are the model's as well, but no gradient is computed of them.
    """

    def loss(trained, batch):
        return summed_loss(cfg, {**(frozen or {}), **trained}, batch)

    gradient = jax.grad(loss, has_aux=True)
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
    *,
    trained: frozenset[str] | None = None,
):
    """One update of the parameters that are trained; all, if not given.

    Returns the new state and the batch's sums.

    If the loss or the gradient norm is not finite the state stays as it was, with all the
    optimizer's slots and counts: its schedule counts the updates that were made, not the
    batches that were seen. Ours: one bad batch in weeks should cost one step.
    """
    params, frozen = retrofit.split(train_state["params"], trained)
    gradients, sums = accumulated_gradients(
        model_cfg, params, batch, accumulation, frozen
    )
    tokens = jnp.maximum(sums["tokens"], 1.0)
    gradients = jax.tree.map(lambda g: g / tokens, gradients)
    sums["gradient_norm"] = optax.tree.norm(gradients)
    finite = jnp.isfinite(sums["loss_nats"]) & jnp.isfinite(sums["gradient_norm"])
    before = {"params": params, "optimizer": train_state["optimizer"]}

    def updated():
        updates, slots = optimizer.update(gradients, before["optimizer"], params)
        return {"params": optax.apply_updates(params, updates), "optimizer": slots}

    # A branch, where a choice for each number would copy all slots (on CPUs).
    after = jax.lax.cond(finite, updated, lambda: before)
    after["params"] |= frozen
    return after, sums | {"updates": updates_made(after)}


def updates_made(train_state: TrainState) -> jax.Array:
    """How many updates have been made, by the optimizer's own counts."""
    counts = optax.tree.get_all_with_path(train_state["optimizer"], "count")
    return functools.reduce(jnp.maximum, [count for _, count in counts])


def initial_state(
    cfg: ModelConfig, optimizer, seed: int, trained: frozenset[str] | None = None
) -> TrainState:
    """Random parameters, and the optimizer's slots of those that are trained."""
    params = parameters.initial_parameters(cfg, seed)
    slots = optimizer.init(retrofit.split(params, trained)[0])
    return {"params": params, "optimizer": slots}


def train(
    model_cfg: ModelConfig,
    optimizer_cfg: OptimizerConfig,
    cfg: TrainConfig,
    mesh,
    batches_from: Callable[[int], Iterator[Batch]],
    workdir: Path,
    run: dict,
    *,
    trained: frozenset[str] | None = None,
    backbone: parameters.Parameters | None = None,
) -> TrainState:
    """Trains to `cfg.steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
        batches_from: batches from a step on, the rows of this process.
        workdir: gets `checkpoints/` and `metrics/`.
        run: JSON that a checkpoint must agree with to be gone on from.
        trained: names of the parameters that are trained; all, if not given.
        backbone: parameters to begin with, of a baseline (`retrofit.py`); used up.
    Raises:
        ValueError: for a checkpoint of another run, or a batch that the mesh can't split,
            before anything is compiled.
        FloatingPointError: if more than `cfg.max_skipped_steps` steps in a row have a loss
            or a gradient that is not finite; names the step.
        preemption.Preempted: after SIGTERM, once the checkpoint is on disk.
        OSError: if a checkpoint can't be written.
    """
    sharding.check_batch("train.batch_size", cfg.batch_size, mesh, cfg.accumulation)
    optimizer = make_optimizer(optimizer_cfg, cfg.steps)
    new = functools.partial(initial_state, model_cfg, optimizer, cfg.seed, trained)
    shardings = sharding.state_shardings(jax.eval_shape(new), mesh)
    keeper = checkpoints.Checkpoints(workdir / "checkpoints", keep=cfg.keep_checkpoints)
    with contextlib.closing(keeper), jax.set_mesh(mesh):
        step, train_state = _begin_or_go_on(
            model_cfg, new, shardings, keeper, run, backbone
        )
        metrics.say(_opening_line(train_state, step, cfg.steps))
        jitted = _jitted(model_cfg, optimizer, cfg, trained, shardings)
        updates: dict = {}  # the compiled step, for batches with neighbours and without
        log = StepLog(workdir / "metrics", optimizer_cfg, cfg, step)
        with contextlib.closing(log), preemption.watch() as reached:
            batches = batches_from(step)
            while step < cfg.steps:
                batch = log.waiting_for(lambda: next(batches))
                on_devices = to_devices(model_cfg, batch, mesh)
                update = _compiled_once(updates, jitted, train_state, on_devices)
                train_state, sums = update(train_state, on_devices)
                step += 1
                log.after_step(step, sums)
                keeper.check()
                stop = reached(step)
                if stop or step % cfg.checkpoint_every == 0 or step == cfg.steps:
                    log.flush()  # stops here if too many steps were not finite
                    keeper.save(step, train_state, {**run, "step": step})
                if stop and step < cfg.steps:
                    keeper.wait()
                    raise preemption.Preempted(step)
    return train_state


def _begin_or_go_on(model_cfg, make_state, shardings, keeper, run, backbone):
    """The step that is reached and its state."""
    if keeper.latest_step() is None:
        return 0, retrofit.first_state(model_cfg, make_state, shardings, backbone)
    shapes = jax.eval_shape(make_state)
    return keeper.restore(checkpoints.abstract(shapes, shardings), run)


def _jitted(model_cfg, optimizer, cfg: TrainConfig, trained, shardings):
    step_fn = functools.partial(
        train_step, model_cfg, optimizer, cfg.accumulation, trained=trained
    )
    return jax.jit(step_fn, donate_argnums=0, out_shardings=(shardings, None))


def _compiled_once(known: dict, jitted, train_state: TrainState, batch):
    names = frozenset(batch)
    if names not in known:
        known[names] = compiled(jitted, train_state, batch)
    return known[names]


def _opening_line(train_state: TrainState, step: int, steps: int) -> str:
    params = train_state["params"]
    millions = parameters.num_parameters(params) / 1e6
    doing = "training" if step == 0 else f"going on from step {step}"
    return f"{millions:.1f}M parameters; {doing} to step {steps}"
