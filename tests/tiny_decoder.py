"""A random decoder of the Llama family, small, whose layers read neighbours themselves."""

import dataclasses
import functools

import jax

from retro_jax.config import ModelConfig, RetrofitConfig
from retro_jax.model import inherited_cca, parameters

CHUNK_LEN, NEIGHBOUR_LEN, NUM_NEIGHBOURS, VOCAB_SIZE = 8, 16, 2, 64
CCA_LAYERS = (2, 4)


def config(**changed) -> ModelConfig:
    """The model; `cca_layers=()` is the decoder alone."""
    sizes = ModelConfig(
        vocab_size=VOCAB_SIZE,
        depth=4,
        width=32,
        num_heads=4,
        head_size=8,
        ffw_width=48,
        num_key_heads=2,
        gated_ffw=True,
        ffw_activation="silu",
        positions="rotary",
        norm_epsilon=1e-5,
        rotary_base=1e4,
        scale_embeddings=False,
        bos_id=0,
        chunk_len=CHUNK_LEN,
        neighbour_len=NEIGHBOUR_LEN,
        cca_layers=CCA_LAYERS,
        encoder="decoder",
        dtype="float32",
        remat="none",
    )
    return dataclasses.replace(sizes, **changed)


@functools.cache
def backbone(**changed) -> dict[str, jax.Array]:
    """The decoder's parameters, large enough that its attentions are not all alike."""
    made = parameters.initial_parameters(config(**{**changed, "cca_layers": ()}), 0)
    return {
        name: array * 30
        if name == "embedding_VD"
        else array * 2
        if "/w_" in name
        else array
        for name, array in made.items()
    }


def whole(
    retrofit: RetrofitConfig | None = None, open_heads=((0, 1, 2, 3), (1, 2)), **changed
) -> dict[str, jax.Array]:
    """The decoder's parameters and those that CCA inherits."""
    decoder = backbone(**changed)
    new = inherited_cca.cca_parameters(
        config(**changed), retrofit or RetrofitConfig(), decoder, open_heads, 0
    )
    return {**decoder, **new}
