"""Fingerprints see every change and no change of layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from retro_jax.runs.fingerprints import examine
from tests import tiny_model

DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "uint8", "bool")


def _random(dtype: str, shape: tuple[int, ...] = (8, 16)):
    values_BD = np.random.default_rng(0).standard_normal(shape)
    return jnp.asarray(values_BD > 0 if dtype == "bool" else 9 * values_BD, dtype)


def _of(array) -> int:
    (value,) = examine({"w": array})[0].values()
    return value


def _mix(word: int) -> int:
    word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
    word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
    return word ^ word >> 16


def _by_hand(array) -> int:
    """The same with Python's integers."""
    flat = np.asarray(array).reshape(-1)
    words = flat.view(f"u{flat.dtype.itemsize}").tolist()
    return sum(_mix(word ^ _mix(i + 1)) for i, word in enumerate(words)) % 2**32


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_what_python_integers_give(dtype):
    assert _of(_random(dtype)) == _by_hand(_random(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
@pytest.mark.parametrize(
    ("mesh", "spec"),
    [
        ((1, 1), P()),
        ((4, 2), P()),
        ((4, 2), P("data", "model")),
        ((2, 4), P("model", "data")),
        ((8, 1), P(None, "data")),
        ((2, 4), P(("data", "model"))),
    ],
    ids=str,
)
def test_it_does_not_depend_on_where_the_array_lies(dtype, mesh, spec):
    array = _random(dtype)
    spread = jax.device_put(array, NamedSharding(tiny_model.mesh(*mesh), spec))
    assert _of(spread) == _by_hand(array)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_single_flipped_bit_is_seen(dtype):
    array = np.array(_random(dtype, (4, 4)))
    known = _of(array)
    bits = array.view(f"u{array.dtype.itemsize}")
    for place in np.ndindex(array.shape):
        for bit in range(8 * array.dtype.itemsize):
            bits[place] ^= 1 << bit
            assert _of(array) != known, (place, bit)
            bits[place] ^= 1 << bit
    assert _of(array) == known


def test_swapped_numbers_are_seen_even_x_and_minus_x():
    array = np.array(_random("float32", (64,)))
    array[1::2] = -array[::2]  # the words differ in the highest bit alone
    known = _of(array)
    for i in range(63):
        swapped = array.copy()
        swapped[[i, i + 1]] = array[[i + 1, i]]
        assert _of(swapped) != known, i


def test_zeros_of_another_length_differ_and_so_do_the_two_zeros():
    assert len({_of(jnp.zeros(size)) for size in (0, 1, 2, 1000)}) == 4
    assert _of(jnp.zeros(4)) != _of(-jnp.zeros(4))


def test_arrays_that_are_not_finite_are_named():
    state = {
        "params": {"w_in_D": jnp.array([1.0, jnp.nan]), "scale_D": jnp.ones(2)},
        "optimizer": (jnp.int32(3), {"w_in_D": jnp.array([-jnp.inf], jnp.bfloat16)}),
    }
    found, not_finite = examine(state)
    assert not_finite == ["optimizer/1/w_in_D", "params/w_in_D"]
    assert set(found) == {"optimizer/0", "params/scale_D", *not_finite}


@pytest.mark.parametrize("dtype", ["int4", "complex64"])
def test_a_dtype_without_a_fingerprint_is_named(dtype):
    with pytest.raises(ValueError, match=f"no fingerprint of {dtype}"):
        _of(jnp.ones(2, dtype))
