"""The steps of one size, measured in this process without TensorFlow and torch."""

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Callable

import jax
import numpy as np

from retro_jax.config import MeshConfig, ModelConfig, OptimizerConfig
from retro_jax.devices import sharding
from retro_jax.model import flops, layers
from tools.benchmark import device, sizes
from tools.benchmark.result import (
    UNKNOWN,
    Result,
    Row,
    describe_machine,
    ratio,
    significant,
    unmeasured,
)
from tools.benchmark.step import Step


@dataclasses.dataclass(slots=True)
class _Variant:
    """A model, its step and the measurements of it.

    Attributes:
        problem: why nothing more can be measured; '' as long as all is well.
    """

    cfg: ModelConfig
    step: Step | None = None
    step_s: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0
    problem: str = ""

    def attempt(self, action: Callable[["_Variant"], None]) -> None:
        """Does an action, unless memory does not suffice or did not before."""
        if self.problem:
            return
        try:
            action(self)
        except MemoryError as error:
            self.problem = f"does not fit: {error}"
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            self.problem = f"does not fit: {str(error).splitlines()[0]}"


def measure(args: argparse.Namespace) -> Result:
    """Gives a row without retrieval and one with it, in rounds that alternate.

    If it is asked for, also one of the model with retrieval where all neighbours are absent.

    Raises:
        ValueError: for a size, a setting or a load that can't be used.
    """
    mesh = sharding.make_mesh(MeshConfig(model=args.mesh_model))
    cfg = sizes.override(sizes.model(args.sizes), args.model)
    cfg = dataclasses.replace(cfg, dtype=args.dtype)
    cfg.validate()
    load = _load(args, cfg, mesh.shape["data"])
    batch = sizes.synthetic_batch(cfg, load)
    # Without retrieval first: it needs less memory, so that both peaks are seen.
    variants = {
        "off": _Variant(sizes.without_retrieval(cfg)),
        "on": _Variant(cfg),
    }
    batches = {"off": batch, "on": batch}
    if args.absent:
        variants["absent"] = _Variant(cfg)
        lengths = "neighbour_lengths_BCN"
        batches["absent"] = batch | {lengths: np.zeros_like(batch[lengths])}
    for name, variant in variants.items():
        variant.attempt(functools.partial(_build, batch=batches[name], mesh=mesh))
    for _ in range(args.rounds):
        for variant in variants.values():
            variant.attempt(lambda measured: _measure_round(measured, args.steps))
    rows = [_row(args.sizes, name, variants, load) for name in variants]
    return Result(
        name="train",
        conditions=_conditions(args, mesh),
        rows=rows,
        notes=[] if jax.default_backend() == "gpu" else ["not measured on a GPU"],
    )


def _build(variant: _Variant, batch: sizes.Batch, mesh) -> None:
    variant.step = Step(variant.cfg, OptimizerConfig(), batch, mesh)


def _load(args: argparse.Namespace, cfg: ModelConfig, shards: int) -> sizes.Load:
    """Gives the load that is asked for; ValueError if the mesh or the model can't have it."""
    usual = sizes.LOADS[args.sizes]
    load = sizes.Load(
        sequence_len=args.sequence_len or usual.sequence_len,
        batch_size=args.batch_size or usual.batch_size * shards,
        num_neighbours=args.num_neighbours or usual.num_neighbours,
    )
    if load.batch_size % shards:
        raise ValueError(
            f"a batch of {load.batch_size} sequences can't be split over {shards} devices "
            "on the 'data' axis: give another --batch_size"
        )
    if load.sequence_len % cfg.chunk_len:
        raise ValueError(
            f"--sequence_len {load.sequence_len} is no multiple of the model's chunks of "
            f"{cfg.chunk_len} tokens"
        )
    return load


def _measure_round(variant: _Variant, steps: int) -> None:
    assert variant.step is not None
    variant.step.start()
    variant.step_s.append(variant.step.run(steps))
    variant.peak_bytes = variant.peak_bytes or device.peak_bytes()
    variant.step.stop()


def _row(
    size: str,
    name: str,
    variants: dict[str, _Variant],
    load: sizes.Load,
) -> Row:
    variant, off = variants[name], variants["off"]
    if variant.problem or variant.step is None:
        return unmeasured(size, name, variant.problem)
    step_s = statistics.median(variant.step_s)
    step_flops = _step_flops(variants, name, load)
    row: Row = {
        "size": size,
        "retrieval": name,
        "state": "measured",
        "parameters M": significant(variant.step.num_parameters / 1e6),
        "dtype": str(layers.activation_dtype(variant.cfg)),
        "remat": variant.cfg.remat,
        "sequences": load.batch_size,
        "length": load.sequence_len,
        "neighbours": load.num_neighbours if name == "on" else 0,
        "tokens/s": significant(load.batch_size * load.sequence_len / step_s),
        "sequences/s": significant(load.batch_size / step_s),
        "step s": significant(step_s),
        "min": significant(min(variant.step_s)),
        "max": significant(max(variant.step_s)),
        "GFLOP/step": significant(step_flops / 1e9),
        "GFLOP/s": significant(step_flops / step_s / 1e9),
    }
    if name != "off" and len(off.step_s) == len(variant.step_s):
        row["off step s"] = significant(statistics.median(off.step_s))
        row["step / off"] = ratio(variant.step_s, off.step_s)
        of_off = _step_flops(variants, "off", load)
        row["FLOP / off"] = significant(step_flops / of_off, 3)
        row["compiled FLOP / off"] = _compiled_ratio(variant, off)
    row["step needs MB"] = round(variant.step.needs_bytes / 1e6)
    row["peak MB"] = round(variant.peak_bytes / 1e6)
    row["compile s"] = round(variant.step.compile_s, 1)
    return row


def _compiled_ratio(variant: _Variant, off: _Variant) -> float | str:
    """Divides FLOPs as the compiler counts them: with recomputing, without left-out blocks."""
    assert variant.step is not None and off.step is not None
    here, without = variant.step.compiled_flops, off.step.compiled_flops
    return significant(here / without, 3) if here and without else UNKNOWN


def _step_flops(variants: dict[str, _Variant], name: str, load: sizes.Load) -> int:
    return load.batch_size * flops.train_flops(
        variants[name].cfg,
        load.sequence_len,
        load.num_neighbours,
        retrieval=name == "on",
    )


def _conditions(args: argparse.Namespace, mesh) -> Row:
    found = describe_machine(("jax", "flax", "optax", "numpy"))
    kind = jax.devices()[0].device_kind
    found["device"] = f"{jax.device_count()} x {kind} ({jax.default_backend()})"
    found["mesh"] = f"data {mesh.shape['data']}, model {mesh.shape['model']}"
    found["batch"] = "random tokens, all neighbours of full length"
    found["steps"], found["rounds"] = args.steps, args.rounds
    return found
