"""Initial parameters of CCA that a decoder inherits from its own self-attention.

The heads by which a decoder copies from its own text copy from a neighbour as well, if it
has been encoded by the layers below: queries, keys and values then mean the same. So each
CCA starts as its layer's self-attention, open for the heads that copy and shut for the
others, and gains before anything is trained.

Source: ours. Copied weights for cross-attention: Yen et al. 2024 (CEPE, arXiv 2402.16617).
"""

import jax
import jax.numpy as jnp

from retro_jax.config import ModelConfig, RetrofitConfig
from retro_jax.model import parameters


def cca_parameters(
    cfg: ModelConfig,
    retrofit: RetrofitConfig,
    backbone: parameters.Parameters,
    open_heads: tuple[tuple[int, ...], ...],
    seed: int,
) -> parameters.Parameters:
    """Gives the parameters that a RETRO has and its decoder lacks.

    Args:
        cfg: whose decoder reads neighbours itself.
        backbone: the decoder's parameters.
        open_heads: heads whose gate starts at 1, for each CCA layer, lowest first.
        seed: of random ones (`retrofit.start`): their output starts at zero and all gates
            at 1, as the paper's retrofit is made here.
    Raises:
        ValueError: for open heads of another number of layers, or that are not there.
    """
    layers = sorted(cfg.cca_layers)
    if len(open_heads) != len(layers):
        raise ValueError(
            f"retrofit.open_heads has {len(open_heads)} layers, model.cca_layers has "
            f"{len(layers)}"
        )
    made = parameters.named(parameters.skeleton(cfg))
    new = {name: made[name] for name in made.keys() - backbone.keys()}
    if retrofit.start == "random":
        return _random(new, backbone, seed)
    found = {}
    for name, leaf in new.items():
        _, layer, module, *rest = name.split("/")
        if rest[-1] == "gate_H":
            heads = open_heads[layers.index(int(layer))]
            found[name] = _gates(leaf.shape[0], heads, name)
            continue
        of_self = "attention" if module == "cross" else "norm_attention"
        found[name] = backbone["/".join(["decoder", layer, of_self, *rest])]
    return found


def _gates(num_heads: int, heads: tuple[int, ...], name: str):
    if any(not 0 <= head < num_heads for head in heads):
        raise ValueError(
            f"retrofit.open_heads: heads lie in 0..{num_heads - 1}, {name} gets {heads}"
        )
    return jnp.zeros(num_heads).at[jnp.array(heads, int)].set(1.0)


def _random(new: dict, backbone: parameters.Parameters, seed: int):
    """Random matrices with an output of zero; norms stay the decoder's."""
    found = {}
    keys = jax.random.split(jax.random.key(seed), len(new))
    for key, (name, leaf) in zip(keys, sorted(new.items()), strict=True):
        parameter = name.rsplit("/", 1)[-1]
        if parameter.startswith(("w_o_", "bias_")):
            found[name] = jnp.zeros(leaf.shape)
        elif parameter.startswith("w_"):
            found[name] = jax.random.normal(key, leaf.shape) * leaf.shape[0] ** -0.5
        elif "/norm_cross/" in name or "/norm_source/" in name:
            layer = name.split("/")[1]
            found[name] = backbone[f"decoder/{layer}/norm_attention/scale_D"]
        else:
            found[name] = jnp.ones(leaf.shape)
    return found
