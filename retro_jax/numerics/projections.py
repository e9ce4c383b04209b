"""Products of activations with parameters, each partitioned over the mesh by its letters.

The module exists so that a layer says a product and its partition in one line. On one CPU
device `one_cpu.py` computes the same; this is the seam.
"""

import jax.numpy as jnp

from retro_jax.devices import sharding
from retro_jax.numerics import one_cpu


def project(einsum: str, x, *weights, dtype=None):
    """Multiplies activations with parameters and partitions the products.

    Args:
        einsum: of the activations and one parameter, 'BLD,DHK->BLHK'. What is summed over
            ends the activations' letters and begins the parameter's.
        x: activations, whose precision the factors have.
        weights: parameters (or arrays) of the same letters.
        dtype: of the result; that of the activations, if not given. Sums are float32.
    Returns:
        As many products as parameters: one, or a tuple.
    """
    dtype = dtype or x.dtype
    if one_cpu.is_in_use():
        products = one_cpu.products(einsum, x, weights, dtype)
    else:
        products = [
            jnp.einsum(einsum, x, w[...].astype(x.dtype), preferred_element_type=dtype)
            for w in weights
        ]
    letters = einsum.split("->")[1]
    products = [sharding.constrain(product, letters) for product in products]
    return products[0] if len(products) == 1 else tuple(products)


def plus(x, bias):
    """Adds a parameter of the last axes, in the activations' precision."""
    if one_cpu.is_in_use():
        return one_cpu.plus(x, bias[...])
    return x + bias[...].astype(x.dtype)
