"""A loop over layers computes what the layers one by one do."""

import dataclasses

import jax
import numpy as np
import pytest

from retro_jax import stack, state, train
from tests import tiny_model


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("", []),
        ("a", [(1, 1)]),
        ("ab", [(1, 1), (1, 1)]),
        ("aaaa", [(1, 4)]),
        ("aab" * 8 + "aa", [(3, 8), (1, 2)]),
        ("ppccc", [(1, 2), (1, 3)]),
        ("abcab", [(1, 1)] * 5),
    ],
)
def test_groups_are_what_repeats(kinds, expected):
    assert stack.groups(list(kinds)) == expected


@pytest.mark.parametrize("retrieval", [True, False])
@pytest.mark.parametrize("num_devices", [1, 4])
def test_the_loop_equals_the_layers_one_by_one(retrieval, num_devices):
    # Two alone, the first with CCA, then three times (alone, CCA).
    cfg = tiny_model.config(depth=9, cca_layers=(3, 5, 7, 9), encoder_depth=1)
    scanned = dataclasses.replace(cfg, scan_layers=True)
    params, batch = tiny_model.parameters(cfg), tiny_model.batch(cfg)
    mesh = tiny_model.mesh(2, 2) if num_devices == 4 else tiny_model.mesh(1, 1)

    def graded(cfg):
        def loss(params, batch):
            losses_BL = train.token_losses(cfg, params, batch, retrieval=retrieval)
            return losses_BL.sum(), losses_BL

        with jax.set_mesh(mesh):
            return jax.jit(jax.grad(loss, has_aux=True))(params, jax.device_put(batch))

    gradients, losses_BL = graded(cfg)
    looped, looped_losses_BL = graded(scanned)
    np.testing.assert_allclose(losses_BL, looped_losses_BL, rtol=1e-4)
    for name, gradient in gradients.items():
        scale = max(float(np.abs(gradient).max()), 1e-3)
        np.testing.assert_allclose(
            gradient, looped[name], atol=1e-4 * scale, err_msg=name
        )


def test_the_loop_is_in_the_program():
    cfg = tiny_model.config(depth=6, cca_layers=(), scan_layers=True)
    batch = jax.device_put(tiny_model.batch(cfg))

    def logits(params, inputs_BL):
        return state.rebuild(cfg, params)(inputs_BL)

    jaxpr = jax.make_jaxpr(logits)(tiny_model.parameters(cfg), batch["inputs_BL"])
    loops = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert [loop.params["length"] for loop in loops] == [6]
