"""The device mesh, and which axis of an array goes to which axis of the mesh.

The letters of a name decide: parameters are spread over both mesh axes (over 'data' as in
FSDP and ZeRO, over 'model' as in tensor parallelism), optimizer slots with them, and
activations over the batch on 'data' and over heads and inner widths on 'model'.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from retro_jax.config import MeshConfig

PARAMETER_AXES = {"V": "model", "H": "model", "F": "model", "D": "data", "E": "data"}
ACTIVATION_AXES = {"B": "data", "H": "model", "F": "model", "V": "model"}


def make_mesh(cfg: MeshConfig) -> Mesh:
    """The ('data', 'model') mesh of all devices.

    Raises:
        ValueError: if the two sizes do not make up the number of devices.
    """
    sizes = [cfg.data, cfg.model]
    num_devices = jax.device_count()
    if sizes.count(-1) == 1:
        given = -math.prod(sizes)
        sizes[sizes.index(-1)] = num_devices // max(given, 1)
    if math.prod(sizes) != num_devices or min(sizes) < 1:
        raise ValueError(
            f"mesh.data={cfg.data} x mesh.model={cfg.model} does not make up the "
            f"{num_devices} devices that are there"
        )
    return jax.make_mesh(
        tuple(sizes), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto)
    )


def letters_of(name: str) -> str:
    """'decoder/5/cross/w_q_DHK' -> 'DHK'; '' for a name without letters."""
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


def state_shardings(state, mesh: Mesh):
    """Shardings of a tree of arrays whose innermost keys are parameter names.

    So parameters and the optimizer's slots, which keep the names, are treated alike.

    Raises:
        ValueError: naming an array that its mesh axis does not divide.
    """

    def sharding(path, array):
        name = str(getattr(path[-1], "key", "")) if path else ""
        spec = parameter_spec(name, array) if array.ndim else P()
        for size, axis in zip(array.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise ValueError(
                    f"{name} {array.shape}: mesh axis '{axis}' of {mesh.shape[axis]} "
                    f"does not divide {size}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, state)


def activation_spec(letters: str) -> P:
    """Partition of an activation by its letters."""
    return _spec(letters, ACTIVATION_AXES)


def platform() -> str:
    """What the mesh in use is made of (cpu, gpu or tpu); without one, the default's.

    They differ when compiling for devices that are not there.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device is None:
        return jax.default_backend()
    return mesh.abstract_device.platform


def constrain(x, letters: str):
    """Asks for the activation's partition by its letters; nothing without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = _spec(letters, ACTIVATION_AXES)
    fits = [
        axis if axis is None or size % mesh.shape[axis] == 0 else None
        for size, axis in zip(x.shape, spec, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, P(*fits))


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays, split over 'data', from the rows that each process holds.

    Raises:
        ValueError: if the 'data' axis does not divide the global batch.
    """
    global_rows = len(next(iter(batch.values()))) * jax.process_count()
    if global_rows % mesh.shape["data"]:
        raise ValueError(
            f"a batch of {global_rows} sequences can't be split over a 'data' axis of "
            f"{mesh.shape['data']} devices"
        )
    sharding = NamedSharding(mesh, P("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
