"""One training step: the loss, its gradient, the update."""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from retro_jax.config import ModelConfig
from retro_jax.model import parameters
from retro_jax.model.parameters import Parameters
from retro_jax.numerics.token_loss import cross_entropy
from retro_jax.training.batch import without_neighbours
from retro_jax.training.train_state import TrainState, partition


def token_losses(
    cfg: ModelConfig, params: Parameters, batch, constant_len: int = 0
) -> Float[Array, "B L"]:
    """The loss of every target in nats; the caller masks those without weight.

    The batch may be one `without_neighbours`.

    Args:
        constant_len: targets at the beginning that no gradient goes through.
    """
    found_BLV = logits(cfg, params, batch, constant_len)
    return cross_entropy(found_BLV, batch["targets_BL"])


def logits(
    cfg: ModelConfig, params: Parameters, batch, constant_len: int = 0
) -> Float[Array, "B L V"]:
    """The logits of the token after each position of a batch."""
    return parameters.rebuild(cfg, params)(
        batch["inputs_BL"],
        batch.get("neighbours_BCNR"),
        batch.get("neighbour_lengths_BCN"),
        batch["segments_BL"],
        batch.get("encoded_BCNTSE"),
        batch.get("lower_BSD"),
        constant_len=constant_len,
    )


def loss(params: Parameters, frozen: Parameters, cfg: ModelConfig, batch):
    """The weighted loss of a batch in nats, and what it was summed over.

    A sum and not a mean: so gradients do not depend on how tokens fall into micro-batches.
    Where a batch marks unrelated neighbours (`unrelated_BC`), positions that read them
    lose by how far their prediction is from the one with retrieval off, in place of their
    target's loss: the sums tell the latter for all positions.

    Args:
        params: those that the gradient is taken of.
        frozen: the model's other parameters.
    """
    weights_BL = batch["loss_weights_BL"]
    # Where the lower states are kept CCA alone is trained, and nothing is read yet by the
    # positions before the end of the first chunk.
    constant_len = cfg.chunk_len - 1 if "lower_BSD" in batch else 0
    everything = {**frozen, **params}
    found_BLV = logits(cfg, everything, batch, constant_len)
    losses_BL = cross_entropy(found_BLV, batch["targets_BL"])
    loss_nats = jnp.sum(losses_BL * weights_BL)
    sums = {
        "loss_nats": loss_nats,
        "tokens": jnp.sum(weights_BL),
        "bytes": jnp.sum(batch["target_bytes_BL"] * weights_BL),
    }
    if "unrelated_BC" not in batch:
        return loss_nats, sums
    off_BLV = jax.lax.stop_gradient(logits(cfg, everything, without_neighbours(batch)))
    divergence_BL = optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(found_BLV), jax.nn.log_softmax(off_BLV)
    )
    is_unrelated_BL = read_by_positions(cfg, batch["unrelated_BC"])
    losses_BL = jnp.where(is_unrelated_BL, divergence_BL, losses_BL)
    return jnp.sum(losses_BL * weights_BL), sums


def read_by_positions(
    cfg: ModelConfig, chunks_BC: Bool[Array, "B C"]
) -> Bool[Array, "B L"]:
    """Tells which positions read what these chunks found: from a chunk's last one on."""
    chunks_BL = jnp.repeat(chunks_BC, cfg.chunk_len, axis=1)
    ahead = cfg.chunk_len - 1
    return jnp.pad(chunks_BL, ((0, 0), (ahead, 0)))[:, : chunks_BL.shape[1]]


def summed_gradients(
    cfg: ModelConfig, params: Parameters, frozen: Parameters, batch, accumulation: int
):
    """Gradients of the loss by `params`, one micro-batch after the other, and the sums."""
    gradient = jax.grad(loss, has_aux=True)
    if accumulation == 1:
        return gradient(params, frozen, cfg, batch)

    def add(total, micro_batch):
        found = gradient(params, frozen, cfg, micro_batch)
        return jax.tree.map(jnp.add, total, found), None

    # Rows of one device's part of the batch stay there: every so many-th row goes into a
    # micro-batch, not the first so many.
    micro_batches = {
        name: array.reshape(-1, accumulation, *array.shape[1:]).swapaxes(0, 1)
        for name, array in batch.items()
    }
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(lambda batch: gradient(params, frozen, cfg, batch), first)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
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

    The gradient is that of the mean loss over the batch's weighted targets. If the loss or
    the gradient norm is not finite the state stays as it was, with all the optimizer's
    slots and counts: its schedule counts the updates that were made, not the batches that
    were seen. Ours: one bad batch in weeks should cost one step.

    Raises:
        ValueError: if all are trained on a batch with kept lower states.
    Returns:
        The new state and the batch's sums, with the gradient's norm and the number of
        updates that were made so far.
    """
    if trained is None and "lower_BSD" in batch:
        raise ValueError(
            "lower states that were kept give their parameters no gradient"
        )
    params, frozen = partition(train_state["params"], trained)
    gradients, sums = summed_gradients(model_cfg, params, frozen, batch, accumulation)
    tokens = jnp.maximum(sums["tokens"], 1.0)
    gradients = jax.tree.map(lambda g: g / tokens, gradients)
    sums["gradient_norm"] = optax.tree.norm(gradients)
    is_finite = jnp.isfinite(sums["loss_nats"]) & jnp.isfinite(sums["gradient_norm"])
    before = {"params": params, "optimizer": train_state["optimizer"]}

    def updated():
        updates, slots = optimizer.update(gradients, before["optimizer"], params)
        return {"params": optax.apply_updates(params, updates), "optimizer": slots}

    # A branch, where a choice for each number would copy all slots (on CPUs).
    after = jax.lax.cond(is_finite, updated, lambda: before)
    after["params"] |= frozen
    return after, sums | {"updates": updates_made(after)}


def updates_made(train_state: TrainState) -> jax.Array:
    """How many updates have been made, by the optimizer's own counts."""
    counts = optax.tree.get_all_with_path(train_state["optimizer"], "count")
    return functools.reduce(jnp.maximum, [count for _, count in counts])
