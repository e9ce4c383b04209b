import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from retro_jax.config import MeshConfig, OptimizerConfig, TrainConfig
from retro_jax.devices import sharding
from retro_jax.training.loop import train
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.step import train_step
from retro_jax.training.train_state import initial_state
from tests import tiny_model
from tests.tiny_training import ACCUMULATION, CFG, OPTIMIZER, STEPS, batch


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
    "replicas, data, model, shape",
    [(2, -1, 2, (2, 2, 2)), (4, 1, -1, (4, 1, 2)), (8, -1, 1, (8, 1, 1))],
)
def test_replicas_are_the_outermost_axis(replicas, data, model, shape):
    cfg = MeshConfig(data=data, model=model, replicas=replicas)
    mesh = sharding.make_mesh(cfg)
    assert mesh.axis_names == ("replica", "data", "model")
    assert mesh.devices.shape == shape
    assert [device.id for device in mesh.devices.flat] == list(range(8))


@pytest.mark.parametrize("replicas", [3, 0, -1, 16])
def test_replicas_that_do_not_divide_the_devices_are_refused(replicas):
    message = f"mesh.replicas={replicas} x mesh.data=-1 x mesh.model=1 .* 8 devices"
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(MeshConfig(replicas=replicas))


def _devices(num_slices: int, num_devices: int = 8, size: int | None = None):
    """Stand-ins, of which slices lie interleaved, as hosts of slices may come."""
    return [
        types.SimpleNamespace(
            id=number,
            slice_index=number % num_slices if size is None else number // size,
            device_kind="stand-in",
            platform="stand-in",
            process_index=0,
        )
        for number in range(num_devices)
    ]


def _slices(grid: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda device: device.slice_index)(grid)


def test_a_replica_is_a_slice():
    grid = sharding.arranged(_devices(2), 2, 2, 2)
    assert _slices(grid).tolist() == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]
    ids = np.vectorize(lambda device: device.id)(grid)
    assert ids.reshape(-1).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_a_slice_may_hold_several_replicas():
    grid = sharding.arranged(_devices(2), 4, 1, 2)
    assert _slices(grid).reshape(4, 2).tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize("replicas, data", [(1, 4), (2, 2)])
def test_a_replica_of_several_slices_spans_them_by_data_alone(replicas, data):
    """As GPUs of several hosts do."""
    grid = _slices(sharding.arranged(_devices(4), replicas, data, 2))
    assert (grid[..., 0] == grid[..., 1]).all()
    assert grid[..., 0].reshape(-1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("replicas, data, model", [(3, 4, 1), (2, 1, 6), (1, 2, 6)])
def test_slices_that_no_replica_fits_are_refused(replicas, data, model):
    devices = _devices(4, 12)
    message = f"mesh.replicas={replicas} x data={data} .* 4 slices: .*replicas=4"
    with pytest.raises(ValueError, match=message):
        sharding.arranged(devices, replicas, data, model)


def test_slices_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"one size; have .* \{0: 5, 1: 3\}"):
        sharding.arranged(_devices(2, size=5), 2, 2, 2)


def _owned(owners) -> np.ndarray:
    """A grid of devices of these processes."""
    return np.vectorize(lambda p: types.SimpleNamespace(process_index=p))(owners)


@pytest.mark.parametrize(
    "owners, parts",
    [
        ([[0, 0], [1, 1]], {0: [0], 1: [1]}),  # 2 x 2 devices
        ([[0, 1], [2, 3]], {0: [0], 1: [0], 2: [1], 3: [1]}),  # 'model' over two
        ([[0, 1, 2, 3]], {0: [0], 3: [0]}),
        ([[0], [1], [0], [1]], {0: [0, 2], 1: [1, 3]}),  # apart, as on a torus
        ([[[0], [0]], [[1], [1]]], {0: [0, 1], 1: [2, 3]}),  # two replicas
    ],
)
def test_processes_hold_the_parts_that_their_devices_hold(owners, parts):
    for process, expected in parts.items():
        got = sharding.parts_of_process(_owned(owners), process)
        assert got.tolist() == expected, process


@pytest.mark.parametrize(
    "sizes, accumulation, message",
    [
        ((4, 2), 1, "train.batch_size=6 .* 'data' of 4 .* multiple of 4"),
        ((2, 4), 2, "=6 .* each of 2 micro-batches .* 'data' of 2 .* multiple of 4"),
        ((2, 2, 2), 1, "'replica' of 2 x 'data' of 2 .* multiple of 4"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_by_axis(sizes, accumulation, message):
    mesh = tiny_model.mesh(*sizes[-2:], *sizes[:-2])
    with pytest.raises(ValueError, match=message):
        sharding.check_batch("train.batch_size", 6, mesh, accumulation)
    sharding.check_batch("train.batch_size", 8, mesh, accumulation)


def test_training_refuses_such_a_batch_before_it_reads_or_compiles(tmp_path):
    cfg = TrainConfig(steps=1, batch_size=12, accumulation=2)
    with pytest.raises(ValueError, match="train.batch_size=12 .* multiple of 8"):
        train(CFG, OPTIMIZER, cfg, tiny_model.mesh(4, 2), iter, tmp_path, {})
    assert not list(tmp_path.iterdir())


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
    message = (
        r"decoder/1/ffw/w_in_DF \(6, 8\): mesh.data=4 does not divide 6; .* divide 6"
    )
    with pytest.raises(ValueError, match=message):
        sharding.state_shardings(state, mesh)
    message = r"w_out_FD \(9, 4\): mesh.model=2 does not divide 9; .* must divide 3 \("
    with pytest.raises(ValueError, match=message):
        state = {"w_out_FD": np.zeros((9, 4)), "w_in_DF": np.zeros((4, 12))}
        sharding.state_shardings({"a": state}, mesh)


def test_key_heads_that_a_mesh_can_not_split_are_held_whole():
    mesh = tiny_model.mesh(2, 4)
    state = {"w_k_EHK": np.zeros((8, 2, 4)), "w_q_DHK": np.zeros((8, 8, 4))}
    specs = {n: s.spec for n, s in sharding.state_shardings(state, mesh).items()}
    assert specs == {
        "w_k_EHK": P("data", None, None),
        "w_q_DHK": P("data", "model", None),
    }
    split = sharding.state_shardings(state, tiny_model.mesh(4, 2))["w_k_EHK"].spec
    assert split == P("data", "model", None)


def test_optimizer_slots_are_spread_as_their_parameters():
    mesh = tiny_model.mesh(2, 4)
    optimizer = make_optimizer(OptimizerConfig(), 100)
    make = functools.partial(initial_state, CFG, optimizer, 0)
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
    with pytest.raises(ValueError, match="batch of 6 sequences .* 4 parts .*'data'"):
        sharding.to_devices({"inputs_BL": np.zeros((6, 3))}, tiny_model.mesh(4, 2))


def test_a_batch_is_split_over_replicas_and_data():
    mesh = tiny_model.mesh(2, 2, 2)
    rows = np.arange(8)[:, None]
    got = sharding.to_devices({"inputs_BL": rows}, mesh)["inputs_BL"]
    np.testing.assert_array_equal(sharding.on_host(got), rows)
    held = {
        shard.device.id: shard.data[:, 0].tolist() for shard in got.addressable_shards
    }
    assert held == {n: [n // 2 * 2, n // 2 * 2 + 1] for n in range(8)}
    assert sharding.local_rows(8, mesh).tolist() == list(range(8))
    with jax.set_mesh(mesh):
        made = jax.jit(lambda x: sharding.constrain(x, "BF"))(jnp.ones((8, 4)))
    expected = jax.sharding.NamedSharding(mesh, P(("replica", "data"), "model"))
    assert made.sharding.is_equivalent_to(expected, 2)


@dataclasses.dataclass
class _Trained:
    """Five steps on one mesh."""

    compiled: jax.stages.Compiled
    losses: list[float]
    gradient_norms: list[float]
    mean_gradients: dict[str, np.ndarray]  # the optimizer's first moments
    bytes_of_device: dict[str, int]  # parameters and their two slots, on one device


@functools.cache
def _trained(data: int, model: int, replicas: int = 1, **changes) -> _Trained:
    cfg = dataclasses.replace(CFG, **changes)
    mesh = tiny_model.mesh(data, model, replicas)
    optimizer = make_optimizer(OPTIMIZER, STEPS)
    params = tiny_model.parameters(cfg)
    state = {"params": params, "optimizer": optimizer.init(params)}
    shardings = sharding.state_shardings(state, mesh)
    step = functools.partial(train_step, cfg, optimizer, ACCUMULATION)
    losses, norms = [], []
    with jax.set_mesh(mesh):
        state = jax.device_put(state, shardings)
        update = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        compiled = update.lower(state, sharding.to_devices(batch(0), mesh)).compile()
        for number in range(5):
            on_devices = sharding.to_devices(batch(number), mesh)
            state, sums = compiled(state, on_devices)
            losses.append(float(sums["loss_nats"] / sums["tokens"]))
            norms.append(float(sums["gradient_norm"]))
    slots = [optax.tree.get(state["optimizer"], slot) for slot in ("mu", "nu")]
    held = {
        name: sum(
            tree[name].addressable_shards[0].data.nbytes
            for tree in (state["params"], *slots)
        )
        for name in params
    }
    return _Trained(compiled, losses, norms, jax.device_get(slots[0]), held)


@pytest.mark.parametrize(
    "data, model, replicas",
    [(8, 1, 1), (2, 4, 1), (1, 8, 1), (2, 2, 2)],
)
def test_every_mesh_learns_what_one_device_learns(data, model, replicas):
    """Retrieval, packed documents and micro-batches included."""
    _assert_same(_trained(data, model, replicas), _trained(1, 1))


def test_so_does_one_that_can_not_split_the_heads_of_keys():
    changes = {"num_key_heads": 2, "positions": "rotary"}
    _assert_same(_trained(2, 4, **changes), _trained(1, 1, **changes))


def _assert_same(got: _Trained, one: _Trained) -> None:
    assert len(set(one.losses)) == 5
    np.testing.assert_allclose(got.losses, one.losses, rtol=2e-6)
    np.testing.assert_allclose(got.gradient_norms, one.gradient_norms, rtol=2e-5)
    assert got.mean_gradients.keys() == one.mean_gradients.keys()
    for name, gradient in one.mean_gradients.items():
        scale = np.abs(gradient).max()
        assert scale > 0, name
        np.testing.assert_allclose(
            got.mean_gradients[name], gradient, atol=5e-5 * scale, err_msg=name
        )


def test_state_of_a_device_falls_by_the_number_of_devices():
    whole = _trained(1, 1).bytes_of_device
    for sizes, all_devices in (((8, 1), 8), ((2, 4), 8), ((2, 2, 2), 4)):
        part = _trained(*sizes).bytes_of_device
        shares = {name: whole[name] / part[name] for name in whole}
        matrices = {n for n in whole if len(sharding.letters_of(n)) > 1}
        assert {shares[n] for n in whole.keys() - matrices} == {1}
        split = {n for n in matrices if shares[n] == all_devices}
        assert split >= {n for n in matrices if "/w_" in n}, sizes
        assert sum(part.values()) < 1.2 * sum(whole.values()) / all_devices, sizes


def _collectives(hlo: str, kind: str) -> list[tuple[int, np.ndarray]]:
    """Of each collective of a kind: the largest result in bytes, the groups of devices."""
    found = []
    for line in hlo.splitlines():
        if not (match := re.search(rf"= (.*?) {kind}(-start)?\(", line)):
            continue
        shapes = re.findall(r"\b(?:pred|[a-z]+(\d+))\[([\d,]*)\]", match[1])
        sizes = [
            int(bits or 8) // 8 * int(np.prod([int(n) for n in shape.split(",") if n]))
            for bits, shape in shapes
        ]
        found.append((max(sizes), _groups(line)))
    return found


def _groups(line: str) -> np.ndarray:
    """Devices of each group, [groups, members]; the compiler writes them in three ways."""
    if match := re.search(r"replica_groups=\{\{(.*?)\}\}", line):
        return np.array([g.split(",") for g in match[1].split("},{")], int)
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=(\S+)", line):
        return _ids(match[2]).reshape(_numbers(match[1]))
    pattern = r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}"
    match = re.search(pattern, line)
    assert match, line
    sizes = dict(axis.split("=") for axis in match[1].split(","))
    shape, within = [int(size) for size in sizes.values()], match[3].split(",")
    ids = _ids(match[2]) if match[2] else np.arange(np.prod(shape))
    joined = [number for number, name in enumerate(sizes) if name in within]
    assert len(joined) == len(within), line
    members = np.prod([shape[number] for number in joined])
    ids = np.moveaxis(ids.reshape(shape), joined, range(-len(joined), 0))
    return ids.reshape(-1, members)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _ids(text: str) -> np.ndarray:
    """'[2,4]T(1,0)' -> 0 to 7 as two rows, transposed."""
    match = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    assert match, text
    ids = np.arange(np.prod(_numbers(match[1]))).reshape(_numbers(match[1]))
    return ids.transpose(_numbers(match[2])) if match[2] else ids


def _largest_parameter_bytes() -> int:
    return max(4 * int(np.prod(shape)) for shape in tiny_model.shapes(CFG).values())


def test_no_device_ever_gathers_more_than_a_parameter():
    """Nor does the optimizer's update gather anything: that is ZeRO."""
    hlo = _trained(8, 1).compiled.as_text()
    gathered = _collectives(hlo, "all-gather")
    reduced = _collectives(hlo, "all-reduce") + _collectives(hlo, "reduce-scatter")
    assert gathered and reduced
    assert max(size for size, _ in gathered) <= _largest_parameter_bytes()
    num_matrices = sum(len(shape) > 1 for shape in tiny_model.shapes(CFG).values())
    assert len(gathered) < 4 * num_matrices


def test_a_gather_of_the_whole_model_would_be_seen():
    mesh = tiny_model.mesh(8, 1)
    params = tiny_model.parameters(CFG)
    params = jax.device_put(params, sharding.state_shardings(params, mesh))

    def flat(params):
        split = jax.sharding.NamedSharding(mesh, P("data"))
        joined = jnp.concatenate([a.reshape(-1) for a in params.values()])
        joined = jnp.pad(joined, (0, -len(joined) % 8))
        return jax.lax.with_sharding_constraint(joined, split) * 2

    whole = jax.sharding.NamedSharding(mesh, P())
    hlo = jax.jit(flat, out_shardings=whole).lower(params).compile().as_text()
    sizes = [size for size, _ in _collectives(hlo, "all-gather")]
    assert max(sizes) > _largest_parameter_bytes()


def test_gathers_stay_within_a_replica_and_only_gradients_cross():
    hlo = _trained(2, 2, 2).compiled.as_text()
    gathered = _collectives(hlo, "all-gather")
    assert gathered
    assert "collective-permute(" not in hlo
    for _, groups in gathered + _collectives(hlo, "all-to-all"):
        assert (groups // 4 == groups[:, :1] // 4).all(), groups
    reduced = _collectives(hlo, "all-reduce") + _collectives(hlo, "reduce-scatter")
    crossing = [
        groups for _, groups in reduced if (groups // 4 != groups[:, :1] // 4).any()
    ]
    assert crossing
