"""Tiny RETROs for tests, with parameters none of which is accidentally 0 or 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from retro_jax.config import MeshConfig, ModelConfig
from retro_jax.devices import sharding
from retro_jax.model import parameters as named_parameters
from retro_jax.model.attention import Attention
from retro_jax.model.layers import Keys


def config(**changes) -> ModelConfig:
    """M = 4, R = 8, D = 16, E = 24, V = 32, three layers, CCA in the last two."""
    settings = {
        "vocab_size": 32,
        "depth": 3,
        "width": 16,
        "num_heads": 2,
        "head_size": 8,
        "ffw_width": 32,
        "chunk_len": 4,
        "cca_layers": (2, 3),
        "neighbour_len": 8,
        "encoder_depth": 2,
        "encoder_width": 24,
        "encoder_heads": 2,
        "encoder_head_size": 8,
        "encoder_ffw_width": 32,
    }
    return ModelConfig(**(settings | changes))


def small_config(**changes) -> ModelConfig:
    """One layer with CCA and one encoder layer: quick to compile with gradients."""
    return config(**({"depth": 1, "cca_layers": (1,), "encoder_depth": 1} | changes))


def parameters(cfg: ModelConfig, seed: int = 0) -> dict[str, jax.Array]:
    """Random gains, biases and matrices of about unit gain."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in shapes(cfg).items():
        leaf = name.rsplit("/", 1)[-1]
        values = rng.standard_normal(shape)
        if leaf.startswith("scale"):
            values = 1 + 0.3 * values
        elif leaf.startswith("w_"):
            fan_in = shape[0] * shape[1] if leaf == "w_o_HKD" else shape[0]
            values = values * (fan_in if leaf != "w_read_VD" else shape[1]) ** -0.5
        elif leaf.startswith("embedding"):
            values = values * shape[1] ** -0.5  # the model scales it by the inverse
        params[name] = jnp.asarray(values, jnp.float32)
    return params


@functools.cache
def shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter."""
    make = functools.partial(named_parameters.initial_parameters, cfg, 0)
    return {name: array.shape for name, array in jax.eval_shape(make).items()}


@functools.cache
def forward(cfg: ModelConfig):
    """The jitted model: (params, inputs, neighbours, lengths, segments) -> logits."""

    def model(params, *inputs):
        return named_parameters.rebuild(cfg, params)(*inputs)

    return jax.jit(model)


def batch(
    cfg: ModelConfig, *, num_sequences: int = 2, num_chunks: int = 3, seed: int = 0
) -> dict[str, np.ndarray]:
    """A random training batch; some neighbours absent, some targets without weight."""
    rng = np.random.default_rng(seed)
    tokens_BL = (num_sequences, num_chunks * cfg.chunk_len)
    neighbours_BCNR = (num_sequences, num_chunks, 2, cfg.neighbour_len)
    return {
        "inputs_BL": rng.integers(0, cfg.vocab_size, tokens_BL, np.int32),
        "targets_BL": rng.integers(0, cfg.vocab_size, tokens_BL, np.int32),
        "loss_weights_BL": (rng.random(tokens_BL) < 0.8).astype(np.float32),
        "target_bytes_BL": rng.integers(1, 6, tokens_BL, np.int32),
        "segments_BL": np.ones(tokens_BL, np.int32),
        "neighbours_BCNR": rng.integers(0, cfg.vocab_size, neighbours_BCNR, np.int32),
        "neighbour_lengths_BCN": rng.integers(
            0, cfg.neighbour_len + 1, neighbours_BCNR[:3], np.int32
        ),
    }


def mesh(data: int, model: int, replicas: int = 1) -> Mesh:
    """A mesh of as many of the devices as it needs."""
    cfg = MeshConfig(data=data, model=model, replicas=replicas)
    return sharding.make_mesh(cfg, jax.devices()[: replicas * data * model])


def attention(seed: int = 0, **options) -> Attention:
    """Two heads of 8 over a width of 16, with biases that are not zero."""
    made = Attention(16, 16, 2, 8, keys=Keys(seed), out_gain=1.0, **options)
    rng = np.random.default_rng(seed)
    for bias in (made.bias_content_HK, made.bias_position_HK):
        if bias is not None:
            bias.set_value(jnp.asarray(rng.standard_normal((2, 8)), jnp.float32))
    return made


def attention_inputs() -> tuple[jax.Array, jax.Array]:
    """Activations, and segments: two documents and padding, another cut in each row."""
    x_BLD = np.random.default_rng(1).standard_normal((2, 128, 16)).astype(np.float32)
    segments_BL = np.ones((2, 128), np.int32)
    for row, segments_L in enumerate(segments_BL):
        segments_L[40 + 13 * row :] = 2
        segments_L[100 + row :] = 0
    return jnp.asarray(x_BLD), jnp.asarray(segments_BL)
