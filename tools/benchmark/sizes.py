"""The models whose steps are measured, and the batches they are measured at."""

import ast
import dataclasses
import re
from typing import Any

import numpy as np

from experiments.configs import tiny
from retro_jax.config import ModelConfig, paper_config

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """The shape of the batch that a step is given.

    Attributes:
        batch_size: sequences.
        num_neighbours: of each chunk, all of full length.
    """

    sequence_len: int
    batch_size: int
    num_neighbours: int = 2


# Batches for each shard of the 'data' axis. Peer: `peer_step.py`.
LOADS = {
    "tiny": Load(sequence_len=512, batch_size=2),
    "peer": Load(sequence_len=512, batch_size=2),
    "172m": Load(sequence_len=2048, batch_size=8),
    "425m": Load(sequence_len=2048, batch_size=4),
    "1.5b": Load(sequence_len=2048, batch_size=2),
    "7.5b": Load(sequence_len=2048, batch_size=1),
}


def model(size: str) -> ModelConfig:
    """Gives the model of `experiments/configs/tiny.py`, the peer's shape or a paper's size.

    Raises:
        ValueError: for another size.
    """
    if size not in LOADS:
        raise ValueError(f"no size {size!r}; there are {', '.join(LOADS)}")
    if size == "tiny":
        return tiny.get_config().model
    return _peer_shape() if size == "peer" else paper_config(size)


def _peer_shape() -> ModelConfig:
    """Gives our model the layers, widths and tables of RETRO-pytorch in `peer_step.py`.

    What can't be matched: it has biases and learned absolute positions, ours has
    relative positions.
    """
    return ModelConfig(
        vocab_size=32_000,
        depth=12,
        width=512,
        num_heads=8,
        head_size=64,
        ffw_width=2048,
        cca_layers=(6, 9, 12),
        encoder_depth=2,
        encoder_width=512,
        encoder_heads=8,
        encoder_head_size=64,
        encoder_ffw_width=2048,
        encoder_cca_layers=(1, 2),
        share_embeddings=True,
        tie_output=False,
    )


def override(cfg: ModelConfig, settings: str) -> ModelConfig:
    """Replaces the fields of `cfg` that are named in 'dtype=bfloat16,cca_layers=(2,),remat=none'.

    Raises:
        ValueError: for a field that there is not, or a value of another type.
    """
    changes: dict[str, Any] = {}
    for setting in filter(None, re.split(r",(?=\w+=)", settings)):
        name, _, text = setting.partition("=")
        if name not in {field.name for field in dataclasses.fields(cfg)}:
            raise ValueError(f"the model has no setting {name!r} (in {settings!r})")
        # What has no value yet is a number.
        wanted = type(getattr(cfg, name)) if getattr(cfg, name) is not None else int
        try:
            value = text if wanted is str else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        if type(value) is not wanted:
            raise ValueError(f"model.{name} must be {wanted.__name__}, is {text!r}")
        changes[name] = value
    return dataclasses.replace(cfg, **changes)


def without_retrieval(cfg: ModelConfig) -> ModelConfig:
    """Gives the same decoder without cross-attention and encoder: the paper's baseline."""
    return dataclasses.replace(cfg, cca_layers=(), copy_init=False)


def synthetic_batch(cfg: ModelConfig, load: Load, seed: int = 0) -> Batch:
    """Draws a batch of the training contract, in which all positions have weight."""
    rng = np.random.default_rng(seed)
    tokens_BL = (load.batch_size, load.sequence_len)
    chunks_BC = (load.batch_size, load.sequence_len // cfg.chunk_len)
    neighbours_BCN = (*chunks_BC, load.num_neighbours)
    neighbours_BCNR = (*neighbours_BCN, cfg.neighbour_len)

    def draw(shape):
        return rng.integers(0, cfg.vocab_size, shape, np.int32)

    return {
        "inputs_BL": draw(tokens_BL),
        "targets_BL": draw(tokens_BL),
        "loss_weights_BL": np.ones(tokens_BL, np.float32),
        "target_bytes_BL": np.full(tokens_BL, 4, np.int32),
        "segments_BL": np.ones(tokens_BL, np.int32),
        "neighbours_BCNR": draw(neighbours_BCNR),
        "neighbour_lengths_BCN": np.full(neighbours_BCN, cfg.neighbour_len, np.int32),
    }
