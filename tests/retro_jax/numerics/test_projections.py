"""Products with parameters have the precision and the partition that are asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.numerics import one_cpu, projections
from tests import tiny_model


@pytest.mark.parametrize("on_one_cpu", [True, False])
def test_result_has_the_dtype_asked_for(on_one_cpu, monkeypatch):
    monkeypatch.setattr(one_cpu, "is_in_use", lambda: on_one_cpu)
    x, weights = jnp.ones((2, 16, 32), jnp.bfloat16), jnp.ones((80, 32))
    assert projections.project("BLD,VD->BLV", x, weights).dtype == jnp.bfloat16
    wide = projections.project("BLD,VD->BLV", x, weights, dtype=jnp.float32)
    assert wide.dtype == jnp.float32


def test_products_are_partitioned_by_their_letters_and_equal_those_of_one_device():
    rng = np.random.default_rng(0)
    x_BLD = jnp.asarray(rng.standard_normal((4, 3, 8)), jnp.float32)
    w_DF, gate_DF = jnp.asarray(rng.standard_normal((2, 8, 6)), jnp.float32)

    def project(x_BLD):
        return projections.project("BLD,DF->BLF", x_BLD, w_DF, gate_DF)

    expected = project(x_BLD)
    with jax.set_mesh(tiny_model.mesh(4, 2)):
        found = jax.jit(project)(x_BLD)
    for one, other in zip(found, expected, strict=True):
        assert one.sharding.shard_shape(one.shape) == (1, 3, 3)  # B and F are split
        np.testing.assert_allclose(one, other, atol=1e-5)
