"""A retrofit's step beside its frozen decoder's forward pass, as more or less is kept.

    python -m tools.benchmark retrofit

FLOPs are those that XLA counts in what it has compiled. Parameters and tokens are random:
neither FLOPs nor time depend on them.
"""

import argparse
import functools
import statistics

import jax
import numpy as np

from experiments.configs import retrofit as config
from retro_jax.config import ModelConfig
from retro_jax.devices.compiled import compiled
from retro_jax.model import parameters
from retro_jax.training import retrofit
from retro_jax.training.batch import Batch, without_neighbours
from retro_jax.training.encodings import Encodings
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.step import token_losses, train_step
from retro_jax.training.train_state import partition
from tools.benchmark.result import (
    Result,
    Row,
    alternate,
    describe_machine,
    ratio,
    significant,
)

_FORWARD, _ENCODING = "decoder alone, forward", "encoding of neighbours"
# A step by what is kept -> what it is compared with.
_BESIDE = {
    "step, nothing kept": (_FORWARD, _ENCODING),
    "step, neighbours kept": (_FORWARD,),
    "step, neighbours and text kept": (_FORWARD,),
    "step, all kept, unrelated passages to change nothing": (_FORWARD,),
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `retrofit`."""
    command.add_argument(
        "--decoder", default="smollm2", help="as --config=retrofit:..."
    )
    command.add_argument("--layers", default="18,19,21,24", help="with CCA, from 1")
    command.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")


def run(args: argparse.Namespace) -> Result:
    """FLOPs, seconds and tokens a second of steps and of the decoder alone."""
    experiment = config.get_config(args.decoder)
    experiment.model.cca_layers = tuple(int(n) for n in args.layers.split(","))
    experiment.model.dtype = args.dtype
    passes = _Passes(experiment)
    elapsed_s = alternate(
        {name: functools.partial(passes.run, name) for name in passes.flops},
        args.rounds,
    )
    size, length = passes.batch["inputs_BL"].shape
    rows = [_row(name, passes.flops, elapsed_s, size * length) for name in passes.flops]
    conditions = describe_machine(("jax", "jaxlib")) | {
        "sequences": size,
        "tokens of a sequence": length,
        "neighbours": passes.batch["neighbours_BCNR"].shape[2],
        "trained": "the cross-attention; the optimizer's update is part of a step",
        "times": f"median of {args.rounds} rounds, in turn",
    }
    return Result(name="retrofit", conditions=conditions, rows=rows, notes=[])


class _Passes:
    """What is measured, compiled, over one batch and one state."""

    def __init__(self, experiment):
        cfg: ModelConfig = experiment.model
        params = parameters.initial_parameters(cfg, 0)
        trained = retrofit.new_names(cfg)
        optimizer = make_optimizer(experiment.optimizer, 10_000)
        slots = optimizer.init(partition(params, trained)[0])
        self._state = {"params": params, "optimizer": slots}
        self.batch = _batch(experiment)
        kept = Encodings(cfg, 10**10).added_to(params, self.batch)
        encoded = {name: kept[name] for name in kept if name != "lower_BSD"}
        marked_BC = np.zeros(self.batch["neighbour_lengths_BCN"].shape[:2], bool)
        told = {**kept, "unrelated_BC": marked_BC}  # which they are costs nothing
        tokens = self.batch["neighbours_BCNR"].reshape(-1, cfg.neighbour_len)
        step = jax.jit(
            functools.partial(train_step, cfg, optimizer, 1, trained=trained),
            donate_argnums=0,
        )
        reading = jax.jit(
            lambda params, rows: parameters.rebuild(cfg, params).encode(rows)
        )
        forward = jax.jit(functools.partial(token_losses, cfg))
        self._given = {
            _FORWARD: without_neighbours(self.batch),
            _ENCODING: tokens,
            **dict(zip(_BESIDE, (self.batch, encoded, kept, told), strict=True)),
        }
        self._compiled = {
            name: compiled(step, self._state, given)
            if name in _BESIDE
            else compiled(forward if name == _FORWARD else reading, params, given)
            for name, given in self._given.items()
        }
        self.flops = {
            name: float(of.cost_analysis()["flops"])
            for name, of in self._compiled.items()
        }

    def run(self, name: str) -> None:
        of, given = self._compiled[name], self._given[name]
        if name in _BESIDE:
            self._state, _ = of(self._state, given)
            jax.block_until_ready(self._state)
        else:
            jax.block_until_ready(of(self._state["params"], given))


def _batch(experiment) -> Batch:
    cfg, rng = experiment.model, np.random.default_rng(0)
    shape_BC = (experiment.train.batch_size, experiment.data.sequence_chunks)
    shape_BCN = (*shape_BC, experiment.data.num_neighbours)

    def tokens(*shape: int) -> np.ndarray:
        return np.asarray(rng.integers(0, cfg.vocab_size, shape, dtype=np.int32))

    inputs_BL = tokens(shape_BC[0], shape_BC[1] * cfg.chunk_len)
    return {
        "inputs_BL": inputs_BL,
        "targets_BL": np.roll(inputs_BL, -1, axis=1),
        "loss_weights_BL": np.ones(inputs_BL.shape, np.float32),
        "target_bytes_BL": np.ones(inputs_BL.shape, np.int32),
        "segments_BL": np.ones(inputs_BL.shape, np.int32),
        "neighbours_BCNR": tokens(*shape_BCN, cfg.neighbour_len),
        "neighbour_lengths_BCN": np.full(shape_BCN, cfg.neighbour_len, np.int32),
    }


def _row(name: str, flops: dict, elapsed_s: dict, num_tokens: int) -> Row:
    median_s = statistics.median(elapsed_s[name])
    row: Row = {
        "pass": name,
        "GFLOP": significant(flops[name] / 1e9),
        "s": significant(median_s, 3),
        "tokens/s": significant(num_tokens / median_s, 3),
    }
    if name in _BESIDE:
        beside = _BESIDE[name]
        others_s = np.sum([elapsed_s[other] for other in beside], axis=0)
        counted = flops[name] / sum(flops[other] for other in beside)
        row["beside"] = " + ".join(beside)
        row["FLOP ratio"] = significant(counted, 4)
        row["time ratio"] = ratio(elapsed_s[name], others_s)
    return row
