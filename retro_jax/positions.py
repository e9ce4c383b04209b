"""Relative positions: a sinusoid of the distance between a query and a key."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def sinusoids(distances_P: Float[Array, " P"], width: int) -> Float[Array, "P D"]:
    """Sines, then cosines, of each distance at width / 2 geometric frequencies.

    Source: Dai et al. 2019 (Transformer-XL), section 3.3, which the paper follows.
    """
    frequencies = 10_000.0 ** -(jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = distances_P[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def relative_distances(num_queries: int, num_keys: int, offset: int, causal: bool):
    """Every distance i - s + offset of a query i and a key s, the largest first.

    With `causal` the distances below `offset` are left out: a mask hides those pairs.

    Returns:
        P float32 distances, P = num_queries + num_keys - 1, or num_queries if causal.
    """
    num_distances = num_queries if causal else num_queries + num_keys - 1
    return (offset + num_queries - 1) - jnp.arange(num_distances, dtype=jnp.float32)


def align_distances(
    logits_BHLP: Float[Array, "B H L P"], num_keys: int
) -> Float[Array, "B H L S"]:
    """Turns logits for each distance into logits for each key.

    Row i of the result takes entry s + L - 1 - i: a shift by one more place in every
    row, had by reading the same memory with a row length that is shorter by one. (A
    gather would do the same with a dozen times the memory traffic.)

    Args:
        logits_BHLP: in the order of `relative_distances`.
        num_keys: S. Keys without a distance (the future, if causal) get zeros.
    """
    batch, heads, num_queries, num_given = logits_BHLP.shape
    num_distances = num_queries + num_keys - 1
    padding = ((0, 0), (0, 0), (0, 0), (0, num_distances - num_given))
    padded = jnp.pad(logits_BHLP, padding)
    if num_queries == 1:  # nothing to shift, and a row can't be shorter by one
        return padded
    flat = padded.reshape(batch, heads, -1)
    flat = flat[:, :, num_queries - 1 : num_queries * num_distances - 1]
    rows = flat.reshape(batch, heads, num_queries, num_distances - 1)
    return rows[..., :num_keys]
