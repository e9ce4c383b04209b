"""What each head would gain if it read neighbours: the first step of training, looked at.

CCA is put into every layer as a copy of its attention, with all gates shut. The loss then
is the decoder's, and its gradient in a gate says how much opening that head would lower it.

Source: gradients of gates as importance of heads, Michel et al. 2019 (Are sixteen heads
really better than one?, arXiv 1905.10650); in place of the measure of random tokens twice
(`copying_heads.py`), or beside it, they need text with neighbours. Letters here: T layers.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Float

from retro_jax.config import ModelConfig, RetrofitConfig
from retro_jax.model import inherited_cca
from retro_jax.model.parameters import Parameters
from retro_jax.training import step


def head_gains(
    cfg: ModelConfig, backbone: Parameters, batch: Mapping[str, jax.Array | np.ndarray]
) -> Float[np.ndarray, "T H"]:
    """Measures what the heads of all layers would gain, as shares of what the best would.

    Args:
        cfg: of a decoder that reads neighbours itself; its `cca_layers` do not matter.
        backbone: the decoder's parameters.
        batch: text with neighbours, and weights of its targets.
    Raises:
        ValueError: if no head would gain anything.
    """
    everywhere = tuple(range(1, cfg.depth + 1))
    cfg = dataclasses.replace(cfg, cca_layers=everywhere)
    shut = ((),) * cfg.depth
    new = inherited_cca.cca_parameters(cfg, RetrofitConfig(), backbone, shut, 0)
    gates = {name: array for name, array in new.items() if name.endswith("/gate_H")}
    frozen = {**backbone, **{name: new[name] for name in new.keys() - gates.keys()}}
    slopes = _slopes(cfg, gates, frozen, batch)
    gains_TH = -np.stack(
        [np.asarray(slopes[f"decoder/{layer}/cross/gate_H"]) for layer in everywhere]
    )
    if gains_TH.max() <= 0:
        raise ValueError(
            "no head of this decoder would gain by reading the neighbours of the first "
            "training sequences: choose heads by retrofit.chosen_by=copying, or name them"
        )
    return gains_TH / gains_TH.max()


@functools.partial(jax.jit, static_argnums=0)
def _slopes(cfg: ModelConfig, gates, frozen, batch):
    return jax.grad(step.loss, has_aux=True)(gates, frozen, cfg, batch)[0]
