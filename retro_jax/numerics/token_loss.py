"""The loss of a token, with a gradient that is written over the logits.

It saves an array of the logits' size on every device, and costs their exponential a
second time.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits_BLV: Float[Array, "B L V"], targets_BL: Int[Array, "B L"]
) -> Float[Array, "B L"]:
    """Minus the logarithm of each target's probability, in nats.

    The value is the usual one. JAX's own gradient holds two arrays of the logits' size, a
    small model's largest, while all activations are in memory as well. Ours keeps the
    logits and is written in their place.

    Args:
        logits_BLV: float32.
        targets_BL: 0 .. V - 1.
    Source: ours.
    """
    # In two dimensions: a reshape between value and gradient would make XLA hold both.
    logits_TV = logits_BLV.reshape(-1, logits_BLV.shape[-1])
    return _of_rows(logits_TV, targets_BL.reshape(-1)).reshape(targets_BL.shape)


@jax.custom_vjp
def _of_rows(logits_TV, targets_T):
    return _forward(logits_TV, targets_T)[0]


def _forward(logits_TV, targets_T):
    norm_T = jax.nn.logsumexp(logits_TV, axis=-1)
    of_target_T = jnp.take_along_axis(logits_TV, targets_T[:, None], axis=-1)[:, 0]
    return norm_T - of_target_T, (logits_TV, targets_T, norm_T)


def _backward(kept, gradient_T):
    logits_TV, targets_T, norm_T = kept
    probability_TV = jnp.exp(logits_TV - norm_T[:, None])
    is_target_TV = jnp.arange(logits_TV.shape[-1]) == targets_T[:, None]
    return (probability_TV - is_target_TV) * gradient_T[:, None], None


_of_rows.defvjp(_forward, _backward)
