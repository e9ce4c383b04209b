"""A fingerprint of every array of a state, to see whether it came back as it was saved.

Integer arithmetic over the raw bits, on the devices where the array lies: the same for any
dtype, mesh and number of processes, and one pass over memory.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, UInt32

_UNSIGNED = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint32}


def examine(tree) -> tuple[dict[str, int], list[str]]:
    """Fingerprints by the arrays' names, and the names of arrays that are not finite.

    Of arrays spread over several processes all of them must call it together; all get the
    same answer.

    Raises:
        ValueError: for a dtype whose numbers are not of 8, 16, 32 or 64 bits.
    """
    fingerprints, not_finite = {}, []
    for path, array in jax.tree_util.tree_flatten_with_path(tree)[0]:
        # One after the other: hundreds of small sums over all devices at once starve each
        # other on simulated ones. And not in one program, which takes longer to compile.
        found, bad = jax.device_get(_fingerprint(array, _replicated(array))).tolist()
        fingerprints[_name(path)] = found
        if bad:
            not_finite.append(_name(path))
    return fingerprints, not_finite


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _replicated(array) -> NamedSharding | None:
    """Where every process can read the result; None if the array has no mesh."""
    sharding = getattr(array, "sharding", None)
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, P())
    return None


@functools.partial(jax.jit, static_argnames="where")
def _fingerprint(array: Array, where: NamedSharding | None) -> UInt32[Array, "2"]:
    """The fingerprint of an array, and how many of its numbers are not finite.

    The fingerprint is the sum, modulo 2**32, of a mix of each word with its position. A
    single changed word always changes it, since the mix is one-to-one; any other damage
    goes unseen once in 2**32. Plain weights instead of a mix would not do: x and -x could
    change places, as their words differ by 2**31 and any two odd weights by an even number.
    """
    words = _as_uint32(array)
    position = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position += index * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    mixed = _mix(words ^ _mix(position + jnp.uint32(1)))
    bad = jnp.zeros((), jnp.uint32)
    if jnp.issubdtype(array.dtype, jnp.floating):
        bad = jnp.sum(~jnp.isfinite(array), dtype=jnp.uint32)
    pair = jnp.stack([jnp.sum(mixed, dtype=jnp.uint32), bad])
    return pair if where is None else jax.lax.with_sharding_constraint(pair, where)


def _as_uint32(array: Array) -> Array:
    """The bits as uint32; numbers of 64 bits give two words, on one more axis."""
    if array.dtype == jnp.bool:
        array = array.astype(jnp.uint8)
    unsigned = _UNSIGNED.get(jax.dtypes.itemsize_bits(array.dtype))
    if unsigned is None or jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(
            f"no fingerprint of {array.dtype}: give numbers of 8, 16, 32 or 64 bits"
        )
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _mix(word: Array) -> Array:
    """Mixes 32 bits, one-to-one; every bit in changes about half of the bits out.

    Source: the finaliser of MurmurHash3, Austin Appleby, in the public domain.
    """
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
