"""The state that training changes: parameters and the optimizer's slots, by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from retro_jax.config import ModelConfig
from retro_jax.model import parameters
from retro_jax.model.parameters import Parameters

TrainState = dict  # {"params": name -> array, "optimizer": optax's, its slots by name}


def partition(
    params: Parameters, trained: frozenset[str] | None
) -> tuple[Parameters, Parameters]:
    """The parameters that are trained and those that are frozen; None trains all."""
    if trained is None:
        return params, {}
    return (
        {name: array for name, array in params.items() if name in trained},
        {name: array for name, array in params.items() if name not in trained},
    )


def initial_state(
    cfg: ModelConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    trained: frozenset[str] | None = None,
) -> TrainState:
    """Random parameters, and the optimizer's slots of those that are trained."""
    params = parameters.initial_parameters(cfg, seed)
    slots = optimizer.init(partition(params, trained)[0])
    return {"params": params, "optimizer": slots}


def first_state(
    make_state: Callable[[], TrainState],
    shardings: TrainState,
    backbone: Parameters | None,
) -> TrainState:
    """The state of step 0: the backbone's arrays themselves and new ones beside them.

    CCA's output projection starts at zero beside a backbone, so that step 0 equals the
    backbone alone (`retrofit.py`).

    Args:
        make_state: makes the state of a run from nothing; only what is new is computed.
        shardings: of that state.
        backbone: on the same shardings. Not copied: who donates the state donates them.
            None begins from nothing.
    """
    if backbone is None:
        return jax.jit(make_state, out_shardings=shardings)()
    of_new = {
        name: sharding
        for name, sharding in shardings["params"].items()
        if name not in backbone
    }

    def make_new() -> TrainState:
        made = make_state()
        params = {
            name: jnp.zeros_like(array) if _is_cca_output(name) else array
            for name, array in made["params"].items()
            if name in of_new
        }
        return {**made, "params": params}

    made = jax.jit(make_new, out_shardings={**shardings, "params": of_new})()
    return {**made, "params": {**backbone, **made["params"]}}


def _is_cca_output(name: str) -> bool:
    return name.startswith("decoder/") and "/cross/w_o_" in name
