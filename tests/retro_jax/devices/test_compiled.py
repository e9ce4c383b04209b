"""A compiled function takes the arrays it was compiled for, and no others."""

import jax
import jax.numpy as jnp
import pytest

from retro_jax.devices.compiled import compiled, give_back_memory


def test_what_is_compiled_computes_the_same_and_refuses_other_shapes():
    double = compiled(jax.jit(lambda x: 2 * x), jax.ShapeDtypeStruct((3,), jnp.float32))
    assert double(jnp.arange(3.0)).tolist() == [0, 2, 4]
    with pytest.raises((TypeError, ValueError)):
        double(jnp.arange(4.0))


def test_memory_is_given_back_where_the_library_can(monkeypatch):
    give_back_memory()
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())  # has no malloc_trim
    give_back_memory()
