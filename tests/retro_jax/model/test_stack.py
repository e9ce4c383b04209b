"""A loop over layers computes what the layers one by one do."""

import dataclasses

import jax
import numpy as np
import pytest

from retro_jax.model import parameters, stack
from retro_jax.training.batch import without_neighbours
from retro_jax.training.step import token_losses
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


# Two alone, the first with CCA, three times (alone, CCA).
_IN_A_ROW = (3, 5, 7, 9)
_NESTED = (3, 6, 9)  # at last twice (two alone, CCA): a loop in a loop


@pytest.mark.parametrize(
    ("cca_layers", "retrieval", "num_devices"),
    [  # every two of the values meet once
        (_IN_A_ROW, True, 1),
        (_IN_A_ROW, False, 4),
        (_NESTED, True, 4),
        (_NESTED, False, 1),
    ],
)
def test_the_loop_equals_the_layers_one_by_one(cca_layers, retrieval, num_devices):
    cfg = tiny_model.config(depth=9, cca_layers=cca_layers, encoder_depth=1)
    scanned = dataclasses.replace(cfg, scan_layers=True)
    params, batch = tiny_model.parameters(cfg), tiny_model.batch(cfg)
    if not retrieval:
        batch = without_neighbours(batch)
    mesh = tiny_model.mesh(2, 2) if num_devices == 4 else tiny_model.mesh(1, 1)

    def graded(cfg):
        def loss(params, batch):
            losses_BL = token_losses(cfg, params, batch)
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


def loops(jaxpr) -> list:
    """Lengths of the loops, each with those in its body."""
    return [
        (equation.params["length"], loops(equation.params["jaxpr"].jaxpr))
        for equation in jaxpr.eqns
        if equation.primitive.name == "scan"
    ]


@pytest.mark.parametrize(
    ("depth", "cca_layers", "expected"),
    [
        (6, (), [(6, [])]),
        # Two, the first with CCA, three times two and one: of twelve four are compiled.
        (12, (3, 6, 9, 12), [(2, []), (3, [(2, [])])]),
    ],
)
def test_loops_are_in_the_program(depth, cca_layers, expected):
    cfg = tiny_model.config(
        depth=depth, cca_layers=cca_layers, encoder_depth=1, scan_layers=True
    )
    batch = jax.device_put(tiny_model.batch(cfg))
    arguments = tiny_model.parameters(cfg), batch["inputs_BL"]

    def logits(params, inputs_BL):
        return parameters.rebuild(cfg, params)(
            inputs_BL,
            neighbours_BCNR=batch["neighbours_BCNR"],
            neighbour_lengths_BCN=batch["neighbour_lengths_BCN"],
        )

    assert loops(jax.make_jaxpr(logits)(*arguments).jaxpr) == expected
