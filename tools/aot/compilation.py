"""The compilation of one step, in the process that `tools.aot` starts for it.

Everything is abstract: under a mesh of devices that are not there nothing can be computed,
not even a random key.
"""

import dataclasses
import functools
import math
import resource
import time
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.config import Experiment
from retro_jax.config import MeshConfig
from retro_jax.devices import sharding
from retro_jax.model import flops, parameters
from retro_jax.training import retrofit
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.step import train_step
from retro_jax.training.train_state import initial_state
from tools.aot import hlo, roofline
from tools.benchmark import sizes


def compile_row(cfg: Experiment, topology: str, *, retrieval: bool) -> dict[str, Any]:
    """Compiles the training step of `cfg` for a topology; gives a row of the table.

    Without `retrieval` it is the same decoder, without cross-attention and encoder. That
    the compiler finds too little memory is a result, too: the row's status says so.

    Raises:
        ValueError: for a mesh or a batch that the slice can't have.
    """
    where = roofline.parse_slice(topology)
    cfg.model.dtype = "bfloat16"  # 'auto' looks at this machine
    if not retrieval:
        cfg.model.cca_layers = ()
    mesh = topology_mesh(where, cfg.mesh)
    row = _settings(cfg, where, mesh, retrieval=retrieval)
    began_s = time.perf_counter()
    try:
        row |= _compiled(cfg, where, mesh, row["model_flops"])
        row["status"] = "ok"
    except jax.errors.JaxRuntimeError as error:
        message = str(error).splitlines()[0]
        if not message.startswith("RESOURCE_EXHAUSTED"):
            raise
        row["status"] = f"does not fit: {message.removeprefix('RESOURCE_EXHAUSTED: ')}"
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return row | {
        "compile_s": time.perf_counter() - began_s,
        "compile_peak_bytes": usage.ru_maxrss * 1024,
    }


def topology_mesh(where: roofline.Slice, cfg: MeshConfig) -> Mesh:
    """Gives the mesh that a job on the slice's chips would make.

    Raises:
        ValueError: for a slice that the compiler does not know, or sizes that do not make
            up its chips.
    """
    options: dict[str, Any] = {}
    if where.chip.megacore:
        options = {
            "chip_config_name": "megacore",
            "chips_per_host_bounds": (2, 2, 1),
        }
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=where.name, **options
        )
    except jax.errors.JaxRuntimeError as error:
        known = " ".join(where.chip.slices)
        raise ValueError(
            f"the compiler knows no topology {where.name!r} ({error}); there are, for "
            f"example, {known}"
        ) from error
    return sharding.make_mesh(cfg, found.devices)


def lower_step(cfg: Experiment, mesh: Mesh) -> jax.stages.Lowered:
    """Lowers the training step as `train.train` jits it, with abstract state and batch."""
    optimizer = make_optimizer(cfg.optimizer, cfg.train.steps)
    trained = retrofit.new_names(cfg.model) if _freezes(cfg) else None
    shapes = jax.eval_shape(
        functools.partial(initial_state, cfg.model, optimizer, cfg.train.seed, trained)
    )
    shardings = sharding.state_shardings(shapes, mesh)
    update = jax.jit(
        functools.partial(
            train_step,
            cfg.model,
            optimizer,
            cfg.train.accumulation,
            trained=trained,
        ),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    abstract_state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings,
    )
    with jax.set_mesh(mesh):
        return update.lower(abstract_state, abstract_batch(cfg, mesh))


def _freezes(cfg: Experiment) -> bool:
    """Whether the encoder and CCA alone are trained."""
    return bool(cfg.init_from and cfg.train.freeze and cfg.model.cca_layers)


def abstract_batch(cfg: Experiment, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Gives the shapes of a global batch, split as `sharding.to_devices` does.

    Raises:
        ValueError: if the mesh can't split a micro-batch.
    """
    size, data = cfg.train.batch_size, cfg.data
    sharding.check_batch("train.batch_size", size, mesh, cfg.train.accumulation)
    load = sizes.Load(
        sequence_len=data.sequence_chunks * data.chunk_len,
        batch_size=1,
        num_neighbours=data.num_neighbours,
    )
    split = NamedSharding(mesh, P(sharding.batch_axes(mesh)))
    return {
        name: jax.ShapeDtypeStruct((size, *one.shape[1:]), one.dtype, sharding=split)
        for name, one in sizes.synthetic_batch(cfg.model, load).items()
    }


def _settings(
    cfg: Experiment, where: roofline.Slice, mesh: Mesh, *, retrieval: bool
) -> dict[str, Any]:
    """Gives what is known before compiling."""
    params = parameters.named(parameters.skeleton(cfg.model))
    per_sequence = flops.train_flops(
        cfg.model,
        cfg.data.sequence_chunks * cfg.data.chunk_len,
        cfg.data.num_neighbours,
        retrieval=retrieval,
        frozen=_freezes(cfg),
    )
    shardings = sharding.state_shardings(params, mesh)
    return {
        "topology": where.name,
        "retrieval": retrieval,
        "chips": where.num_chips,
        "mesh": list(mesh.shape.values()),
        "accumulation": cfg.train.accumulation,
        "remat": cfg.model.remat,
        "parameters": parameters.num_parameters(params),
        "parameters_per_chip": sum(
            math.prod(shardings[name].shard_shape(leaf.shape))
            for name, leaf in params.items()
        ),
        "hbm_bytes": where.chip.hbm_bytes,
        "model_flops": per_sequence * cfg.train.batch_size / where.num_chips,
    }


def _compiled(
    cfg: Experiment, where: roofline.Slice, mesh: Mesh, model_flops: float
) -> dict[str, Any]:
    """Compiles the step; gives its memory, its work and the least time that it takes."""
    compiled = lower_step(cfg, mesh).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if memory is None or text is None:
        raise RuntimeError(f"the compiler of {where.name} tells no memory or program")
    program = hlo.Program(text)
    collectives = program.collectives()
    program_flops = hlo.product_flops(program)
    kernels = hlo.num_kernels(program)
    if kernels:
        program_flops += _kernel_flops(cfg) // where.num_chips
    traffic_bytes = hlo.memory_bytes(program)
    bounds = roofline.times(where, program_flops, traffic_bytes, collectives)
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "program_flops": program_flops,
        "kernels": kernels,
        "traffic_bytes": traffic_bytes,
        "collectives": sorted({one.kind for one in collectives}),
        "sent_bytes": sum(one.sent_bytes for one in collectives),
        **dataclasses.asdict(bounds),
        "longest_s": bounds.longest_s,
        "sum_s": bounds.sum_s,
        "mfu_longest": model_flops / (where.chip.flops_per_s * bounds.longest_s),
        "mfu_sum": model_flops / (where.chip.flops_per_s * bounds.sum_s),
        "limit": bounds.limit,
    }


def _kernel_flops(cfg: Experiment) -> int:
    """Counts a step's FLOPs in fused attention kernels: forward, remade, backward.

    From the settings, for a kernel tells no FLOPs. In full, as everywhere: a causal one
    leaves out up to half.
    """
    length = cfg.data.sequence_chunks * cfg.data.chunk_len
    times = 3 if cfg.model.remat == "none" else 4
    once = flops.attention_flops(cfg.model, length)
    return times * once * cfg.train.batch_size
