"""The device mesh, and which axis of an array goes to which axis of the mesh.

The letters of a name decide: parameters are spread over 'data' (as in FSDP and ZeRO) and
over 'model' (as in tensor parallelism), optimizer slots with them, and activations over the
batch on 'data' and over heads and inner widths on 'model'. Where there are several
'replica's, each holds all parameters, and the batch is split over them first.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from retro_jax.config import MeshConfig

PARAMETER_AXES = {"V": "model", "H": "model", "F": "model", "D": "data", "E": "data"}
# May be fewer than those of queries.
_KEY_HEADS = ("w_k_EHK", "w_v_EHK", "bias_k_HK", "bias_v_HK")
ACTIVATION_AXES = {"B": "data", "H": "model", "F": "model", "V": "model"}


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The ('data', 'model') mesh, or ('replica', 'data', 'model') of several replicas.

    Args:
        devices: all there are, if not given.
    Raises:
        ValueError: if the sizes do not make up the number of devices, or slices do not
            fall into replicas.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [cfg.replicas, cfg.data, cfg.model]
    if sizes[1:].count(-1) == 1:
        given = -math.prod(sizes)
        sizes[sizes.index(-1)] = len(devices) // max(given, 1)
    if math.prod(sizes) != len(devices) or min(sizes) < 1:
        replicas = "" if cfg.replicas == 1 else f"mesh.replicas={cfg.replicas} x "
        raise ValueError(
            f"{replicas}mesh.data={cfg.data} x mesh.model={cfg.model} does not make up "
            f"the {len(devices)} devices that are there"
        )
    grid, names = arranged(devices, *sizes), ["replica", "data", "model"]
    if cfg.replicas == 1:
        grid, names = grid[0], names[1:]
    return Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))


def arranged(
    devices: Sequence[Any], replicas: int, data: int, model: int
) -> np.ndarray:
    """Arranges devices as [replica, data, model], so that the fewest axes cross slices.

    A slice is what fast links join: a TPU slice, the GPUs of a host. It holds one or more
    whole replicas; where a replica needs several slices, its 'data' axis spans them, and
    'model' stays within one. Within a slice the order follows the links.

    Raises:
        ValueError: if slices differ in size, or neither of replicas and slices divides
            the other.
    """
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    num_slices = len(slices)
    if len({len(members) for members in slices.values()}) > 1:
        sizes = {number: len(members) for number, members in sorted(slices.items())}
        raise ValueError(f"slices must be of one size; have (slice: devices) {sizes}")
    if replicas % num_slices == 0:
        shape = (replicas // num_slices, data, model)
    elif num_slices % replicas == 0 and data % (num_slices // replicas) == 0:
        shape = (1, data // (num_slices // replicas), model)
    else:
        raise ValueError(
            f"mesh.replicas={replicas} x data={data} x model={model} can't be laid over "
            f"{num_slices} slices: use mesh.replicas={num_slices}, a slice each"
        )
    grids = [
        mesh_utils.create_device_mesh(
            shape, slices[number], allow_split_physical_axes=True
        )
        for number in sorted(slices)
    ]
    # Slice after slice: replicas first, then the parts of their 'data' axes.
    return np.concatenate(grids).reshape(replicas, data, model)


def letters_of(name: str) -> str:
    """The letters at a name's end: 'DHK' of 'decoder/5/cross/w_q_DHK'; '' if none."""
    suffix = name.rsplit("_", 1)[-1]
    return suffix if suffix.isupper() and suffix.isalpha() else ""


def parameter_spec(name: str, array) -> P:
    """Partition of a parameter by the letters of its name.

    One-dimensional arrays and scalars are replicated. An axis name is used once: of two
    letters that map to the same mesh axis, the first gets it.

    Raises:
        ValueError: if the letters do not match the rank.
    """
    if array.ndim == 0:
        return P()
    letters = letters_of(name)
    if len(letters) != array.ndim:
        raise ValueError(f"{name} promises {len(letters)} axes and has {array.ndim}")
    if array.ndim == 1:
        return P(None)
    return _spec(letters, PARAMETER_AXES)


def _spec(letters: str, axes: dict[str, str]) -> P:
    entries: list[str | None] = []
    for letter in letters:
        axis = axes.get(letter)
        entries.append(None if axis in entries else axis)
    return P(*entries)


def _fitted_spec(name: str, array, mesh) -> P:
    """Gives `parameter_spec`, but holds heads of keys whole that a mesh can't split."""
    spec = parameter_spec(name, array)
    if name.endswith(_KEY_HEADS) and array.shape[-2] % mesh.shape["model"]:
        return P(*spec[:-2], None, None)
    return spec


def state_shardings(state, mesh: Mesh):
    """Shardings of a tree of arrays whose innermost keys are parameter names.

    So parameters and the optimizer's slots, which keep the names, are treated alike.

    Raises:
        ValueError: naming a setting of the mesh that does not divide an array, and what
            would.
    """

    def name_of(path) -> str:
        return str(getattr(path[-1], "key", "")) if path else ""

    sizes: dict[str, dict[int, str]] = {axis: {} for axis in mesh.axis_names}
    for path, array in jax.tree_util.tree_leaves_with_path(state):
        spec = _fitted_spec(name_of(path), array, mesh)
        for size, axis in zip(array.shape, spec, strict=False):
            if axis is not None:
                sizes[axis].setdefault(size, f"{name_of(path)} {array.shape}")
    for axis, arrays in sizes.items():
        _check_divides(axis, mesh.shape[axis], arrays)
    return jax.tree_util.tree_map_with_path(
        lambda path, array: NamedSharding(
            mesh, _fitted_spec(name_of(path), array, mesh)
        ),
        state,
    )


def _check_divides(axis: str, parts: int, arrays: dict[int, str]) -> None:
    """Raises ValueError if sizes, each of the array that it names, can't be split."""
    for size, array in arrays.items():
        if size % parts:
            raise ValueError(
                f"{array}: mesh.{axis}={parts} does not divide {size}; for this model it "
                f"must divide {math.gcd(*arrays)} (mesh.replicas takes further devices)"
            )


def activation_spec(letters: str) -> P:
    """Partition of an activation by its letters, over the mesh in use."""
    entries: list[str | tuple[str, ...] | None] = [*_spec(letters, ACTIVATION_AXES)]
    if "data" in entries:
        mesh = jax.sharding.get_abstract_mesh()
        entries[entries.index("data")] = batch_axes(mesh)
    return P(*entries)


def platform() -> str:
    """The kind of device in use: cpu, gpu or tpu; without a mesh, the default's.

    They differ when compiling for devices that are not there.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device is None:
        return jax.default_backend()
    return mesh.abstract_device.platform


def num_devices() -> int:
    """The number of devices of the mesh in use; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def constrain(x, letters: str):
    """Asks for the activation's partition by its letters; nothing without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if num_devices() == 1:
        return x
    fits = [
        axes if axes is None or size % _size(mesh, axes) == 0 else None
        for size, axes in zip(x.shape, activation_spec(letters), strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, P(*fits))


def constrain_stacked(x, path):
    """Asks for a parameter's partition, of an array with the layers in front."""
    if num_devices() == 1:
        return x
    name = next(key.name for key in reversed(path) if key.name != "value")
    layer = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    of_layer = _fitted_spec(name, layer, jax.sharding.get_abstract_mesh())
    return jax.lax.with_sharding_constraint(x, P(None, *of_layer))


def batch_axes(mesh) -> tuple[str, ...]:
    """The axes of the mesh that a batch is split over, the outer first."""
    return tuple(axis for axis in ("replica", "data") if axis in mesh.axis_names)


def _size(mesh, axes: str | tuple[str, ...]) -> int:
    names = (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh.shape[name] for name in names)


def check_batch(name: str, batch_size: int, mesh, accumulation: int = 1) -> None:
    """Raises ValueError, naming setting and axes, if a batch can't be split evenly.

    Args:
        name: of the setting that `batch_size` is.
        accumulation: micro-batches that a batch is cut into first.
    """
    axes = batch_axes(mesh)
    parts = _size(mesh, axes)
    if batch_size % (parts * accumulation) == 0:
        return
    over = " x ".join(f"'{axis}' of {mesh.shape[axis]}" for axis in axes)
    into = "" if accumulation == 1 else f" in each of {accumulation} micro-batches"
    raise ValueError(
        f"{name}={batch_size} can't be split{into} over the mesh axes {over} (the devices "
        f"of {jax.process_count()} processes): use a multiple of {parts * accumulation}"
    )


def local_rows(batch_size: int, mesh: Mesh) -> Int[np.ndarray, " B"]:
    """The rows of a global batch that this process's devices hold, in order.

    Processes that hold the same part of it, as along 'model', have the same rows.

    Raises:
        ValueError: if the mesh can't split the batch.
    """
    check_batch("batch size", batch_size, mesh)
    parts = parts_of_process(mesh.devices, jax.process_index())
    part_size = batch_size // _size(mesh, batch_axes(mesh))
    return (parts[:, None] * part_size + np.arange(part_size)).reshape(-1)


def parts_of_process(grid: np.ndarray, process_index: int) -> np.ndarray:
    """Numbers of the parts of a batch that a process holds, of devices [..., model]."""
    owners = np.vectorize(lambda device: device.process_index, otypes=[int])(grid)
    is_mine = (owners == process_index).any(axis=-1)
    return np.flatnonzero(is_mine)


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays, split over the batch, from the `local_rows` of each process.

    Raises:
        ValueError: if the mesh can't split the batch.
    """
    num_rows, axes = len(next(iter(batch.values()))), batch_axes(mesh)
    parts = parts_of_process(mesh.devices, jax.process_index())
    if num_rows % len(parts):
        raise ValueError(
            f"a batch of {num_rows} sequences in this process can't be split over its "
            f"{len(parts)} parts of the mesh axes {axes}"
        )
    part_size = num_rows // len(parts)
    batch_size = part_size * _size(mesh, axes)
    place = {part * part_size: row * part_size for row, part in enumerate(parts)}
    sharding = NamedSharding(mesh, P(axes))

    def split(array: np.ndarray) -> jax.Array:
        def rows(index: tuple[slice, ...] | None) -> np.ndarray:
            first = place[index[0].start or 0] if index else 0
            return array[first : first + part_size]

        return jax.make_array_from_callback(
            (batch_size, *array.shape[1:]), sharding, rows
        )

    return {name: split(array) for name, array in batch.items()}


def on_host(tree):
    """Gives arrays of numpy, the same in every process; all processes must call it."""

    def whole(array: jax.Array):
        if array.is_fully_addressable or array.is_fully_replicated:
            return array
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))
