"""Parameters as one flat dict, name -> array: what is jitted, sharded, optimised, saved.

`nnx.Module` only describes the forward pass; `rebuild` puts the arrays of a dict back into
a model, inside of a jitted function, for free.
"""

import functools
from typing import Any

import jax

from retro_jax.config import ModelConfig
from retro_jax.model import initial_copier
from retro_jax.model.layers import Keys
from retro_jax.model.retro import Retro

Parameters = dict[str, jax.Array]


def named(model: Retro) -> dict[str, Any]:
    """All arrays of a model by name, 'decoder/5/cross/w_q_DHK', with layers from 1.

    A skeleton gives the arrays' shapes.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return {_name(path): array for path, array in leaves}


def _name(path) -> str:
    """The name of a leaf of the model's tree."""
    parts = []
    for key in path:
        if isinstance(key, jax.tree_util.SequenceKey):
            parts.append(str(key.idx + 1))  # layers are numbered as in the paper
        elif key.name != "value":  # the array inside an nnx.Param
            parts.append(key.name)
    return "/".join(parts)


@functools.cache
def skeleton(cfg: ModelConfig) -> Retro:
    """The model with shapes in place of arrays. `cfg` must not be changed afterwards."""
    return jax.eval_shape(lambda: Retro(cfg, rngs=Keys(0)))


def rebuild(cfg: ModelConfig, params: Parameters) -> Retro:
    """The model with these arrays.

    Raises:
        ValueError: naming the first parameter that is missing, unknown or misshapen.
    """
    empty = skeleton(cfg)
    leaves, structure = jax.tree_util.tree_flatten_with_path(empty)
    expected = {_name(path): leaf for path, leaf in leaves}
    for name in sorted(expected.keys() ^ params.keys()):
        where = "these parameters lack" if name in expected else "the model has no"
        raise ValueError(f"{where} {name}")
    for name, leaf in expected.items():
        if params[name].shape != leaf.shape:
            raise ValueError(
                f"{name}: {params[name].shape} given, {leaf.shape} expected"
            )
    return jax.tree.unflatten(structure, [params[name] for name in expected])


def initial_parameters(cfg: ModelConfig, seed: int) -> Parameters:
    """Random parameters; the same for a seed on any mesh."""
    params = named(Retro(cfg, rngs=Keys(seed)))
    if cfg.copy_init and cfg.cca_layers:
        return initial_copier.copier_parameters(cfg, params, seed)
    return params


def num_parameters(params: dict[str, Any], *, embeddings: bool = True) -> int:
    """Counts the numbers in parameters, with or without the embedding tables."""
    return sum(
        array.size
        for name, array in params.items()
        if embeddings or "embedding_V" not in name
    )
