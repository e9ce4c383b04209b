"""The compilation itself, in the process that `aot.py` starts for it.

Everything is abstract: under a mesh of devices that are not there nothing can be computed,
not even a random key.
"""

import dataclasses
import functools
import importlib.metadata
import math
import resource
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import hlo, hlo_costs, roofline
from experiments.config import Experiment
from retro_jax import flops, sharding, state, train
from retro_jax.config import MeshConfig
from retro_jax.optimizer import make_optimizer


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
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    try:
        row |= _compiled(cfg, where, mesh, row["model_flops"])
        row["status"] = "ok"
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0]
        if not said.startswith("RESOURCE_EXHAUSTED"):
            raise
        row["status"] = f"does not fit: {said.removeprefix('RESOURCE_EXHAUSTED: ')}"
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return row | {
        "compile_s": time.perf_counter() - began_s,
        "compile_cpu_s": time.process_time() - began_cpu_s,
        "compile_peak_bytes": usage.ru_maxrss * 1024,
    }


def topology_mesh(where: roofline.Slice, cfg: MeshConfig) -> Mesh:
    """The ('data', 'model') mesh of a slice's chips.

    Raises:
        ValueError: for a slice that the compiler does not know, or sizes that do not make
            up its chips.
    """
    sizes = [cfg.data, cfg.model]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = where.num_chips // max(-math.prod(sizes), 1)
    if math.prod(sizes) != where.num_chips or min(sizes) < 1:
        raise ValueError(
            f"mesh.data={cfg.data} x mesh.model={cfg.model} does not make up the "
            f"{where.num_chips} chips of {where.name}"
        )
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
    return jax.make_mesh(
        tuple(sizes),
        ("data", "model"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=found.devices,
    )


def lower_step(cfg: Experiment, mesh: Mesh) -> jax.stages.Lowered:
    """The training step as `train.train` jits it, with abstract state and batch."""
    optimizer = make_optimizer(cfg.optimizer, cfg.train.steps)
    shapes = jax.eval_shape(
        functools.partial(train.initial_state, cfg.model, optimizer, cfg.train.seed)
    )
    shardings = sharding.state_shardings(shapes, mesh)
    update = jax.jit(
        functools.partial(
            train.train_step, cfg.model, optimizer, cfg.train.accumulation
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


def abstract_batch(cfg: Experiment, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch, split over 'data', as `sharding.to_devices` makes it.

    Raises:
        ValueError: if a micro-batch can't be split over the 'data' axis.
    """
    batch, data = cfg.train.batch_size, cfg.data
    micro_batch = batch // cfg.train.accumulation
    if micro_batch % mesh.shape["data"]:
        raise ValueError(
            f"train.batch_size {batch} / train.accumulation {cfg.train.accumulation} = "
            f"{micro_batch} sequences can't be split over mesh.data={mesh.shape['data']}"
        )
    tokens_BL = (batch, data.sequence_chunks * data.chunk_len)
    chunks_BCN = (batch, data.sequence_chunks, data.num_neighbours)
    split = NamedSharding(mesh, P("data"))
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "inputs_BL": (tokens_BL, np.int32),
        "targets_BL": (tokens_BL, np.int32),
        "loss_weights_BL": (tokens_BL, np.float32),
        "target_bytes_BL": (tokens_BL, np.int32),
        "segments_BL": (tokens_BL, np.int32),
        "neighbours_BCNR": ((*chunks_BCN, data.neighbour_len), np.int32),
        "neighbour_lengths_BCN": (chunks_BCN, np.int32),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=split)
        for name, (shape, dtype) in shapes.items()
    }


def _settings(
    cfg: Experiment, where: roofline.Slice, mesh: Mesh, *, retrieval: bool
) -> dict[str, Any]:
    """What is known before compiling."""
    params = state.named(state.skeleton(cfg.model))
    per_sequence = flops.train_flops(
        cfg.model,
        cfg.data.sequence_chunks * cfg.data.chunk_len,
        cfg.data.num_neighbours,
        retrieval=retrieval,
    )
    shardings = sharding.state_shardings(params, mesh)
    return {
        "topology": where.name,
        "retrieval": retrieval,
        "chips": where.num_chips,
        "mesh": [mesh.shape["data"], mesh.shape["model"]],
        "accumulation": cfg.train.accumulation,
        "batch_size": cfg.train.batch_size,
        "remat": cfg.model.remat,
        "parameters": state.num_parameters(params),
        "parameters_per_chip": sum(
            math.prod(shardings[name].shard_shape(leaf.shape))
            for name, leaf in params.items()
        ),
        "hbm_bytes": where.chip.hbm_bytes,
        "model_flops": per_sequence * cfg.train.batch_size / where.num_chips,
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "libtpu")
        },
    }


def _compiled(
    cfg: Experiment, where: roofline.Slice, mesh: Mesh, model_flops: float
) -> dict[str, Any]:
    """What the compiled step says, and how long that work takes at least."""
    compiled = lower_step(cfg, mesh).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if memory is None or text is None:
        raise NotImplementedError("this compiler tells neither memory nor program")
    program = hlo.Program(text)
    collectives = program.collectives()
    program_flops = hlo_costs.product_flops(program)
    traffic_bytes = hlo_costs.memory_bytes(program)
    bounds = roofline.times(where, program_flops, traffic_bytes, collectives)
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "program_flops": program_flops,
        "kernels": hlo_costs.num_kernels(program),
        "traffic_bytes": traffic_bytes,
        "collectives": by_kind(collectives),
        **dataclasses.asdict(bounds),
        "longest_s": bounds.longest_s,
        "sum_s": bounds.sum_s,
        "mfu_longest": model_flops / (where.chip.flops_per_s * bounds.longest_s),
        "mfu_sum": model_flops / (where.chip.flops_per_s * bounds.sum_s),
        "limit": bounds.limit,
    }


def by_kind(collectives: list[hlo.Collective]) -> list[dict[str, Any]]:
    """Executions, payload and bytes sent by a chip in a step, by kind and size of group."""
    sums: dict[tuple[str, int], dict[str, Any]] = {}
    for one in collectives:
        key = (one.kind, one.group_size)
        row = sums.setdefault(
            key,
            {"kind": key[0], "group_size": key[1], "executions": 0}
            | {"payload_bytes": 0, "sent_bytes": 0.0},
        )
        row["executions"] += one.executions
        row["payload_bytes"] += one.executions * one.payload_bytes
        row["sent_bytes"] += one.sent_bytes
    return [sums[key] for key in sorted(sums)]
