"""The first state: new parameters beside a backbone's, and slots of what is trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.config import OptimizerConfig
from retro_jax.devices import sharding
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.train_state import first_state, initial_state, partition
from tests import tiny_model

CFG = tiny_model.small_config(vocab_size=16)
OPTIMIZER = make_optimizer(OptimizerConfig(), 10)


def _is_new(name: str) -> bool:
    return name.startswith("encoder/") or "cross" in name


def _first(backbone, trained=None):
    make = functools.partial(initial_state, CFG, OPTIMIZER, 3, trained)
    mesh = tiny_model.mesh(1, 1)
    shardings = sharding.state_shardings(jax.eval_shape(make), mesh)
    return first_state(make, shardings, backbone)


def test_parameters_are_parted_by_name():
    params = {"a": jnp.zeros(1), "b": jnp.ones(1)}
    assert partition(params, None) == (params, {})
    trained, frozen = partition(params, frozenset({"b"}))
    assert list(trained) == ["b"] and list(frozen) == ["a"]


def test_new_parameters_stand_beside_the_backbone_and_cca_adds_nothing():
    from_nothing = _first(None)["params"]
    backbone = {n: 2 * a for n, a in from_nothing.items() if not _is_new(n)}
    params = _first(dict(backbone))["params"]
    assert params.keys() == from_nothing.keys()
    for name, array in params.items():
        if "/cross/w_o_" in name and name.startswith("decoder/"):
            assert not array.any(), name
        else:
            expected = from_nothing if _is_new(name) else backbone
            np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_only_what_is_trained_has_slots():
    trained = frozenset(n for n in tiny_model.shapes(CFG) if _is_new(n))
    slots = _first(None, trained)["optimizer"]
    names = {
        str(path[-1].key)
        for path, _ in jax.tree_util.tree_leaves_with_path(slots)
        if hasattr(path[-1], "key")
    }
    assert names == trained
