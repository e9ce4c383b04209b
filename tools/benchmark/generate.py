"""Tokens a second of generation, beside running the whole window again for each token.

    python -m tools.benchmark generate --out=docs/results/generate.json

The model is that of `experiments/configs/tiny.py` with random parameters; each chunk gets
random neighbours, so what a search takes is left out. A row whose prompt fills the window
pays with a pass over its newer half for the older one that leaves it.
"""

import argparse
import functools
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax import generation
from retro_jax.config import ModelConfig
from retro_jax.model import parameters
from retro_jax.training.step import logits
from tools.benchmark import sizes
from tools.benchmark.result import (
    Result,
    Row,
    alternate,
    describe_machine,
    positive,
    ratio,
    significant,
)

_WHOLE_WINDOW = "whole window for each token"
_NO_END = -1


class _Neighbours(NamedTuple):
    """Passages of random tokens, all of full length."""

    tokens_QNR: np.ndarray
    lengths_QN: np.ndarray
    chunk_ids_QN: np.ndarray
    distances_QN: np.ndarray


class _Retriever:
    """Finds the same passages for every chunk."""

    def __init__(self, cfg: ModelConfig):
        self._cfg = cfg

    def retrieve(self, tokens_QM: np.ndarray, num_neighbours: int) -> _Neighbours:
        """Gives random passages, at once."""
        shape = (len(tokens_QM), num_neighbours)
        rng = np.random.default_rng(0)
        return _Neighbours(
            rng.integers(
                1, self._cfg.vocab_size, (*shape, self._cfg.neighbour_len), np.int32
            ),
            np.full(shape, self._cfg.neighbour_len, np.int32),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.float32),
        )


class _Cached:
    """Generation as it is; keeps when each chunk of each run was there."""

    def __init__(self, cfg: ModelConfig, params, args, prompt_len: int, rows: int):
        self._cfg, self._params, self._args = cfg, params, args
        self.prompts = [np.arange(1, prompt_len + 1, dtype=np.int32)] * rows
        self.chunks_s: list[list[float]] = []

    def __call__(self) -> None:
        load = sizes.LOADS[self._args.size]
        times_s = [time.perf_counter()]
        generation.generate(
            self._cfg,
            self._params,
            self.prompts,
            _Retriever(self._cfg),
            num_tokens=self._args.tokens,
            window_chunks=load.sequence_len // self._cfg.chunk_len,
            num_neighbours=load.num_neighbours,
            eod_id=_NO_END,
            stop=lambda tokens: times_s.append(time.perf_counter()),
        )
        every_chunk_s = times_s[:: len(self.prompts)]
        self.chunks_s.append(np.diff(every_chunk_s).tolist())

    def last_quarter_by_first(self) -> float:
        """Divides the time of the last quarter of the chunks by that of the first."""
        ratios = []
        for chunks_s in self.chunks_s[1:]:
            quarter = max(len(chunks_s) // 4, 1)
            # Before the first chunk stands the prompt: it is no part of the comparison.
            ratios.append(sum(chunks_s[-quarter:]) / sum(chunks_s[1 : quarter + 1]))
        return statistics.median(ratios)


@functools.partial(jax.jit, static_argnums=0)
def _likeliest(cfg: ModelConfig, params, batch, place):
    logits_V = jnp.take(logits(cfg, params, batch)[0], place, axis=0)
    return jnp.argmax(logits_V)


def _whole_window(cfg: ModelConfig, params, args) -> None:
    """Runs the window for each of some tokens; which tokens they are costs nothing."""
    load = sizes.LOADS[args.size]
    num_chunks = load.sequence_len // cfg.chunk_len
    found = _Retriever(cfg).retrieve(
        np.zeros((num_chunks, cfg.chunk_len), np.int32), load.num_neighbours
    )
    batch = {
        "inputs_BL": np.zeros((1, load.sequence_len), np.int32),
        "segments_BL": np.ones((1, load.sequence_len), np.int32),
        "neighbours_BCNR": found.tokens_QNR[None],
        "neighbour_lengths_BCN": found.lengths_QN[None],
    }
    for place in range(args.window_tokens):
        batch["inputs_BL"][0, place] = int(_likeliest(cfg, params, batch, place))


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `generate`."""
    command.add_argument("--size", default="tiny", choices=[*sizes.LOADS])
    command.add_argument("--tokens", type=positive, default=256, help="new tokens")
    command.add_argument("--batch_size", type=positive, default=8, help="of the batch")
    command.add_argument(
        "--window_tokens",
        type=positive,
        default=16,
        help="of a run without a cache, where every token takes as long",
    )


def run(args: argparse.Namespace) -> Result:
    """Measures one prompt, several at once and a full window, each in turn."""
    cfg = sizes.model(args.size)
    window_len = sizes.LOADS[args.size].sequence_len
    params = jax.jit(functools.partial(parameters.initial_parameters, cfg, 0))()
    cached = {
        "one prompt of a chunk": _Cached(cfg, params, args, cfg.chunk_len, 1),
        "a prompt that fills the window": _Cached(cfg, params, args, window_len, 1),
    }
    if args.batch_size > 1:
        name = f"{args.batch_size} prompts of a chunk"
        cached[name] = _Cached(cfg, params, args, cfg.chunk_len, args.batch_size)
    whole_window = functools.partial(_whole_window, cfg, params, args)
    elapsed_s = alternate({_WHOLE_WINDOW: whole_window, **cached}, args.rounds)
    tokens = {_WHOLE_WINDOW: args.window_tokens}
    tokens |= {name: args.tokens * len(each.prompts) for name, each in cached.items()}
    rates = {
        name: [tokens[name] / seconds for seconds in times]
        for name, times in elapsed_s.items()
    }
    rows: list[Row] = [
        {
            "what": name,
            "tokens a second": significant(statistics.median(rate)),
            "by the whole window": ratio(rate, rates[_WHOLE_WINDOW]),
        }
        for name, rate in rates.items()
    ]
    for row, each in zip(rows[1:], cached.values(), strict=True):
        row["last quarter by first"] = significant(each.last_quarter_by_first(), 3)
    return Result(
        name="generate",
        conditions={
            "size": args.size,
            "new tokens": args.tokens,
            "window": window_len,
            "rounds": args.rounds,
            **describe_machine(["jax"]),
        },
        rows=rows,
        notes=[
            (
                "Medians of rounds taken in turn; ratios round by round (least to largest). "
                "The last quarter of a text is divided by the first after its first chunk, "
                "which the prompt is read for."
            )
        ],
    )
