import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from retro_jax import sharding, train
from retro_jax.config import MeshConfig, OptimizerConfig
from retro_jax.optimizer import make_optimizer
from tests import tiny_model

CFG = tiny_model.small_config(
    num_heads=8, head_size=4, encoder_heads=8, encoder_head_size=4, remat=False
)


@pytest.mark.parametrize(
    "data, model, shape",
    [
        (-1, 1, (8, 1)),
        (-1, 2, (4, 2)),
        (2, -1, (2, 4)),
        (1, 8, (1, 8)),
    ],
)
def test_minus_one_takes_what_is_left_of_eight_devices(data, model, shape):
    mesh = sharding.make_mesh(MeshConfig(data=data, model=model))
    assert mesh.axis_names == ("data", "model")
    assert mesh.devices.shape == shape


@pytest.mark.parametrize(
    "data, model", [(3, 2), (-1, 3), (16, 1), (-1, -1), (0, -1), (8, 0), (-1, 16)]
)
def test_sizes_that_do_not_make_up_the_devices_are_refused(data, model):
    message = f"mesh.data={data} x mesh.model={model} .* 8 devices"
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(MeshConfig(data=data, model=model))


@pytest.mark.parametrize(
    "name, shape, spec",
    [
        ("decoder/5/cross/w_q_DHK", (8, 8, 8), P("data", "model", None)),
        ("decoder/5/cross/w_k_EHK", (8, 8, 8), P("data", "model", None)),
        ("decoder/5/cross/w_o_HKD", (8, 8, 8), P("model", None, "data")),
        ("decoder/5/ffw/w_in_DF", (8, 8), P("data", "model")),
        ("decoder/5/ffw/w_out_FD", (8, 8), P("model", "data")),
        ("embedding_VD", (8, 8), P("model", "data")),
        ("decoder/5/attention/bias_content_HK", (8, 8), P("model", None)),
        ("norm/scale_D", (8,), P(None)),
        ("count", (), P()),
        ("w_DE", (8, 8), P("data", None)),  # each mesh axis once
    ],
)
def test_letters_are_the_partition(name, shape, spec):
    assert sharding.parameter_spec(name, np.zeros(shape)) == spec


@pytest.mark.parametrize("name", ["w_q_DHK", "w_q", "scale_D", "w_dhk", "x/y"])
def test_a_name_that_does_not_match_the_rank_is_refused(name):
    promised = len(sharding.letters_of(name))
    message = f"{name} promises {promised} axes and has 2"
    with pytest.raises(ValueError, match=message):
        sharding.parameter_spec(name, np.zeros((8, 8)))


def test_an_axis_that_does_not_divide_is_refused_by_name():
    mesh = tiny_model.mesh(4, 2)
    state = {"decoder/1/ffw/w_in_DF": np.zeros((6, 8))}
    message = r"decoder/1/ffw/w_in_DF \(6, 8\): mesh axis 'data' of 4 .* divide 6"
    with pytest.raises(ValueError, match=message):
        sharding.state_shardings(state, mesh)
    message = r"w_out_FD \(9, 4\): mesh axis 'model' of 2 .* divide 9"
    with pytest.raises(ValueError, match=message):
        sharding.state_shardings({"a": {"w_out_FD": np.zeros((9, 4))}}, mesh)


def test_optimizer_slots_are_spread_as_their_parameters():
    mesh = tiny_model.mesh(2, 4)
    optimizer = make_optimizer(OptimizerConfig(), 100)
    make = functools.partial(train.initial_state, CFG, optimizer, 0)
    shardings = sharding.state_shardings(jax.eval_shape(make), mesh)
    for slot in ("mu", "nu"):
        assert optax.tree.get(shardings["optimizer"], slot) == shardings["params"]
    specs = {name: s.spec for name, s in shardings["params"].items()}
    assert specs["decoder/1/cross/w_q_DHK"] == P("data", "model", None)
    held = sum(
        np.prod(shardings["params"][name].shard_shape(shape))
        for name, shape in tiny_model.shapes(CFG).items()
    )
    total = sum(map(np.prod, tiny_model.shapes(CFG).values()))
    assert held < total / 8 * 1.2  # gains and biases alone are held more than once


def test_a_constraint_without_a_mesh_or_that_does_not_fit_does_nothing():
    x = jnp.ones((3, 5))
    assert sharding.constrain(x, "BF") is x
    mesh = tiny_model.mesh(2, 4)
    with jax.set_mesh(mesh):
        got = jax.jit(lambda x: sharding.constrain(x, "BF"))(x)
        np.testing.assert_array_equal(got, x)
        wide = jax.jit(lambda x: sharding.constrain(x, "BF"))(jnp.ones((4, 8)))
    assert wide.sharding.is_equivalent_to(
        jax.sharding.NamedSharding(mesh, P("data", "model")), 2
    )


def test_a_batch_is_split_over_data():
    batch = {"inputs_BL": np.arange(24).reshape(8, 3), "documents_BC": np.ones((8, 1))}
    got = sharding.to_devices(batch, tiny_model.mesh(4, 2))
    np.testing.assert_array_equal(got["inputs_BL"], batch["inputs_BL"])
    assert got["inputs_BL"].sharding.shard_shape((8, 3)) == (2, 3)
    with pytest.raises(ValueError, match="batch of 6 sequences .* of 4 devices"):
        sharding.to_devices({"inputs_BL": np.zeros((6, 3))}, tiny_model.mesh(4, 2))


def _loss_and_gradients(mesh):
    params = tiny_model.parameters(CFG)
    batch = tiny_model.batch(CFG, num_sequences=8)
    step = jax.jit(
        jax.value_and_grad(functools.partial(train.summed_loss, CFG), has_aux=True)
    )
    with jax.set_mesh(mesh):
        params = jax.device_put(params, sharding.state_shardings(params, mesh))
        (_, sums), gradients = step(params, sharding.to_devices(batch, mesh))
        return jax.device_get((sums, gradients))


@pytest.fixture(scope="module")
def on_one_device():
    return _loss_and_gradients(tiny_model.mesh(1, 1))


@pytest.mark.parametrize("data, model", [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(
    on_one_device, data, model
):
    sums, gradients = on_one_device
    got_sums, got_gradients = _loss_and_gradients(tiny_model.mesh(data, model))
    for name, value in sums.items():
        np.testing.assert_allclose(got_sums[name], value, rtol=1e-5, err_msg=name)
    assert got_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = np.abs(gradient).max()
        assert scale > 0, name
        np.testing.assert_allclose(
            got_gradients[name], gradient, atol=1e-5 * scale, err_msg=name
        )
