"""Where a query and a key stand to each other: sinusoids of their distance, or rotations.

A sinusoid of a distance can be had in two ways that give the same logits: for each
distance, then shifted into place (`align_distances`: least arithmetic); or as products of
sinusoids of the two places (`as_features`: plain attention, hence any fused kernel).

Letters here: D width of the sinusoids, F frequencies (half of D or K).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Offset = int | jax.Array  # of places: one, or one a row as [B 1] or [B 1 1]


class Frequencies(NamedTuple):
    """How fast the angles of sinusoids grow with distance.

    Attributes:
        base: the longest wavelength is nearly 2 pi times it.
        scaling: None, or Llama 3's way to longer texts: factor, low and high frequency
            factor, and the length of the text that the model was trained on before.
    """

    base: float = 10_000.0
    scaling: tuple[float, float, float, float] | None = None

    def of(self, width: int) -> Float[Array, " F"]:
        """Gives width / 2 geometric frequencies, the highest first.

        With `scaling`, wavelengths above length / low grow by the factor, those below
        length / high stay, and between them the share of the two changes linearly.
        Source: Dubey et al. 2024 (Llama 3, arXiv 2407.21783), as Llama 3.1 is released.
        """
        frequencies_F = self.base ** -(
            jnp.arange(0, width, 2, dtype=jnp.float32) / width
        )
        if self.scaling is None:
            return frequencies_F
        factor, low, high, length = self.scaling
        turns_F = length * frequencies_F / (2 * jnp.pi)
        kept_F = jnp.clip((turns_F - low) / (high - low), 0.0, 1.0)
        return frequencies_F * (kept_F + (1.0 - kept_F) / factor)


TRANSFORMER_XL = Frequencies()  # and RoFormer's


def sinusoids(
    distances_P: Float[Array, "*rows P"],
    width: int,
    frequencies: Frequencies = TRANSFORMER_XL,
) -> Float[Array, "*rows P D"]:
    """Sines, then cosines, of each distance at width / 2 frequencies.

    Source: Dai et al. 2019 (Transformer-XL), section 3.3, which the paper follows.
    """
    angles = distances_P[..., None] * frequencies.of(width)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def relative_distances(num_queries: int, num_keys: int, offset: int = 0):
    """Every distance i - s + offset of a query i and a key s, the largest first.

    Returns:
        P = num_queries + num_keys - 1 distances, float32.
    """
    num_distances = num_queries + num_keys - 1
    return (offset + num_queries - 1) - jnp.arange(num_distances, dtype=jnp.float32)


def align_distances(
    logits_BHLP: Float[Array, "B H L P"], num_keys: int
) -> Float[Array, "B H L S"]:
    """Moves logits for each distance to the keys that are so far away.

    Row i of the result takes entry s + L - 1 - i: a shift by one more place in every row,
    had by reading the same memory with a row length that differs by one. (A gather would do
    the same with a dozen times the memory traffic.)

    Args:
        logits_BHLP: in the order of `relative_distances`, or the first S of these: with a
            query for the last of the keys, those of the keys up to each query.
        num_keys: S. Of keys whose distance is left out the result is finite and means
            nothing.
    """
    batch, heads, num_queries, num_given = logits_BHLP.shape
    if num_given == num_keys:  # one column more is enough
        padded = jnp.pad(logits_BHLP, ((0, 0), (0, 0), (0, 0), (1, 0)))
        rows = padded.reshape(batch, heads, num_keys + 1, num_queries)
        return rows[:, :, 1:].reshape(batch, heads, num_queries, num_keys)
    # The first L - 1 entries belong to no key of row 0; then rows of P - 1 in place of P
    # shift each row by one more.
    flat = logits_BHLP.reshape(batch, heads, -1)
    flat = flat[:, :, num_queries - 1 : num_queries * num_given - 1]
    rows = flat.reshape(batch, heads, num_queries, num_given - 1)
    return rows[..., :num_keys]


def as_features(
    along_BLHD: Float[Array, "B L H D"], num_keys: int, offset: int = 0
) -> tuple[Float[Array, "B L H D"], Float[Array, "S D"]]:
    """Features of queries and keys whose products are the logits of their distances.

    With `sinusoids` of distance i - s + offset, sin(a - b) and cos(a - b) are sums of
    products of sines and cosines of a and of b; so along_BLHD . sinusoids(distance) equals
    query_BLHD . key_SD, exactly.

    Args:
        along_BLHD: what each query gives to each sine, then to each cosine.
        num_keys: S.
        offset: query i and key s are i - s + offset apart.
    Source: ours; the identity that Transformer-XL's sinusoids allow.
    """
    length, width = along_BLHD.shape[1], along_BLHD.shape[-1]
    places_L = jnp.arange(length, dtype=jnp.float32) + offset
    # sin(a - b) = sin a cos b - cos a sin b; cos(a - b) = cos a cos b + sin a sin b.
    query_LD = sinusoids(places_L, width).astype(along_BLHD.dtype)
    sin_L1F, cos_L1F = (x[:, None] for x in jnp.split(query_LD, 2, axis=-1))
    of_sin_BLHF, of_cos_BLHF = jnp.split(along_BLHD, 2, axis=-1)
    query_BLHD = jnp.concatenate(
        [
            of_cos_BLHF * sin_L1F - of_sin_BLHF * cos_L1F,
            of_sin_BLHF * sin_L1F + of_cos_BLHF * cos_L1F,
        ],
        axis=-1,
    )
    keys_SD = sinusoids(jnp.arange(num_keys, dtype=jnp.float32), width)
    return query_BLHD, keys_SD.astype(along_BLHD.dtype)


def rotate(
    x_LHK: Float[Array, "... L H K"],
    offset: Offset = 0,
    frequencies: Frequencies = TRANSFORMER_XL,
):
    """Rotates pairs of features by their place, so that products depend on distances.

    Feature f and f + K / 2 are a pair; the place of row l is l + offset.
    Source: Su et al. 2021 (RoFormer, arXiv 2104.09864), section 3.2.
    """
    length, _, size = x_LHK.shape[-3:]
    places_L = jnp.arange(length, dtype=jnp.float32) + offset
    sinusoids_LK = sinusoids(places_L, size, frequencies)
    sin_L1F, cos_L1F = (x[..., None, :] for x in jnp.split(sinusoids_LK, 2, axis=-1))
    # In float32: far places need more digits than bfloat16 has.
    first, second = jnp.split(x_LHK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate(
        [first * cos_L1F - second * sin_L1F, first * sin_L1F + second * cos_L1F],
        axis=-1,
    )
    return rotated.astype(x_LHK.dtype)
