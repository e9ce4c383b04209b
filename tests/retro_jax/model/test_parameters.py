import dataclasses

import jax
import numpy as np
import pytest

from retro_jax.model import parameters
from tests import tiny_model

CFG = tiny_model.config()


@pytest.fixture(scope="module")
def params():
    return tiny_model.parameters(CFG)


def test_every_array_has_a_name_of_its_own_and_layers_count_from_one(params):
    leaves = jax.tree.leaves(parameters.skeleton(CFG))
    assert len(params) == len(leaves)
    assert params["decoder/1/attention/w_q_DHK"].shape == (16, 2, 8)
    assert params["encoder/layers/2/ffw/w_in_DF"].shape == (24, 32)
    layers = {name.split("/")[1] for name in params if name.startswith("decoder/")}
    assert layers == {"1", "2", "3"}
    crosses = {name.split("/")[1] for name in params if name.endswith("cross/w_q_DHK")}
    assert "decoder/2/cross/w_k_EHK" in params and crosses == {"2", "3", "layers"}


def test_a_rebuilt_model_has_the_same_names_and_arrays(params):
    again = parameters.named(parameters.rebuild(CFG, params))
    assert list(again) == list(params)
    for name, array in params.items():
        assert again[name] is array


def test_the_order_of_the_dict_does_not_matter(params):
    shuffled = dict(reversed(params.items()))
    again = parameters.named(parameters.rebuild(CFG, shuffled))
    assert all(again[name] is params[name] for name in params)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda p: p.pop("decoder/2/cross/w_k_EHK"),
            "these parameters lack decoder/2/cross/w_k_EHK",
        ),
        (
            lambda p: p.update({"decoder/9/x_D": np.zeros(3)}),
            "the model has no decoder/9/x_D",
        ),
        (
            lambda p: p.update({"norm/scale_D": np.zeros(3)}),
            r"norm/scale_D: \(3,\) given, \(16,\) expected",
        ),
    ],
)
def test_wrong_parameters_are_refused_by_name(params, change, message):
    wrong = dict(params)
    change(wrong)
    with pytest.raises(ValueError, match=message):
        parameters.rebuild(CFG, wrong)


def test_the_first_of_several_wrong_names_is_said(params):
    """Always the same one: two processes that fail say the same."""
    baseline = dataclasses.replace(CFG, cca_layers=())
    wrong = sorted(params.keys() - tiny_model.shapes(baseline).keys())
    with pytest.raises(ValueError, match=f"the model has no {wrong[0]}$"):
        parameters.rebuild(baseline, params)


def test_initial_parameters_depend_on_the_seed_alone():
    cfg = tiny_model.small_config()
    make = jax.jit(parameters.initial_parameters, static_argnums=(0, 1))
    one, again, other = make(cfg, 1), make(cfg, 1), make(cfg, 2)
    for name, array in one.items():
        np.testing.assert_array_equal(array, again[name])
        leaf = name.rsplit("/", 1)[-1]
        if leaf.startswith("scale"):
            np.testing.assert_array_equal(array, 1.0)
        elif leaf.startswith("bias"):
            np.testing.assert_array_equal(array, 0.0)
        else:
            assert (np.asarray(array) != other[name]).all(), name
    matrices = [np.asarray(a).ravel()[:16] for n, a in one.items() if "/w_" in n]
    assert len({tuple(values) for values in matrices}) == len(matrices)


def test_parameters_are_counted_with_and_without_embeddings(params):
    everything = parameters.num_parameters(params)
    assert everything == sum(array.size for array in params.values())
    without = parameters.num_parameters(params, embeddings=False)
    assert everything - without == 32 * 16 + 32 * 24
