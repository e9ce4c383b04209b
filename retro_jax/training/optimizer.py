"""AdamW, its schedule, and which parameters decay."""

import optax

from retro_jax.config import OptimizerConfig
from retro_jax.devices.sharding import letters_of
from retro_jax.model.parameters import Parameters


def learning_rate(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then a cosine that ends at `final_share` at step `steps`.

    A warm-up longer than a tenth of the run is cut to that, so that short runs learn.
    Source: Borgeaud et al. 2022, section 2.4; the cut is ours.
    """
    warmup_steps = min(cfg.warmup_steps, max(1, steps // 10))
    return optax.warmup_cosine_decay_schedule(
        init_value=cfg.learning_rate_start,
        peak_value=cfg.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(steps, warmup_steps + 1),
        end_value=cfg.learning_rate * cfg.final_share,
    )


def decays(params: Parameters) -> dict[str, bool]:
    """Weight decay is for matrices: gains and biases keep their size."""
    return {
        name: len(letters_of(name)) > 1
        and not name.rsplit("/", 1)[-1].startswith("bias")
        for name in params
    }


def make_optimizer(cfg: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW over the flat dict of parameters, after clipping the global norm."""
    adamw = optax.adamw(
        learning_rate(cfg, steps),
        b1=cfg.beta1,
        b2=cfg.beta2,
        eps=cfg.epsilon,
        weight_decay=cfg.weight_decay,
        mask=decays,
    )
    parts = [adamw]
    if cfg.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(cfg.clip_norm))
    if cfg.gate_rate != 1.0:
        faster = optax.masked(optax.scale(cfg.gate_rate), _are_gates)
        parts.append(faster)
    return parts[0] if len(parts) == 1 else optax.chain(*parts)


def _are_gates(params: Parameters) -> dict[str, bool]:
    """Gates have few gradients to learn from: a number for a whole head."""
    return {name: name.endswith("/gate_H") for name in params}
