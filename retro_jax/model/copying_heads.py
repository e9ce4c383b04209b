"""Which heads of a decoder copy: the induction heads that CCA inherits.

An induction head looks for what stood after an earlier occurrence of the current token.
Over a text that repeats itself at random, such as random tokens twice, it looks there and
nowhere else, so the heads can be found in seconds, without data.

Source: Olsson et al. 2022 (In-context learning and induction heads, arXiv 2209.11895), of
whose measures this is the attention to the token after the previous occurrence.
Letters here: T layers, in order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from retro_jax.config import ModelConfig, RetrofitConfig
from retro_jax.model import parameters
from retro_jax.model.attention import attention_weights
from retro_jax.model.retro import DecoderLayer

REPEATED_LEN, _NUM_TEXTS = 100, 4


def copying_scores(
    cfg: ModelConfig, params: parameters.Parameters, *, seed: int = 0
) -> Float[np.ndarray, "T H"]:
    """Measures how much of its attention each head gives to what it would copy.

    Args:
        cfg, params: of a decoder; CCA is not looked at.
    """
    tokens_BL = _repeated_tokens(cfg, seed)
    model = parameters.rebuild(cfg, params)
    hidden_BLD, segments_BL = model.embedded(tokens_BL, jnp.ones_like(tokens_BL))
    scores = []
    for layer in model.decoder:
        hidden_BLD, score_H = _layer_scores(layer, hidden_BLD, segments_BL)
        scores.append(np.asarray(score_H))
    return np.stack(scores)


def _repeated_tokens(cfg: ModelConfig, seed: int) -> Int[np.ndarray, "B L"]:
    """Random tokens twice; neither the first ones, which are special, nor the rarest."""
    shape = (_NUM_TEXTS, REPEATED_LEN)
    first, end = cfg.vocab_size // 50, max(cfg.vocab_size * 4 // 5, 2)
    once_BL = np.random.default_rng(seed).integers(first, end, shape)
    return np.tile(once_BL, 2).astype(np.int32)


@jax.jit
def _layer_scores(layer: DecoderLayer, hidden_BLD, segments_BL):
    """What comes out of a layer, and its heads' attention to the token to be copied."""
    normed_BLD = layer.norm_attention(hidden_BLD)
    weights_BHLNS = attention_weights(
        layer.attention,
        normed_BLD,
        normed_BLD[:, None],
        layer.visible(segments_BL).mask_BLNS,
    )
    opener = hidden_BLD.shape[1] - 2 * REPEATED_LEN
    # The first token of the repetition has no match yet, hence from the second on.
    query = opener + REPEATED_LEN + jnp.arange(1, REPEATED_LEN)
    copied = query - REPEATED_LEN + 1
    score_H = weights_BHLNS[:, :, query, 0, copied].mean(axis=(0, 2))
    hidden_BLD = layer(hidden_BLD, segments_BL)
    return hidden_BLD, score_H


def layers_that_copy(
    cfg: RetrofitConfig, scores_TH: Float[np.ndarray, "T H"]
) -> tuple[int, ...]:
    """Chooses the layers that get CCA, from 1: the lowest of those that copy.

    What they read takes the fewest layers to encode.

    Raises:
        ValueError: if no head of the decoder copies.
    """
    copies_T = scores_TH.max(axis=1) >= cfg.copying_score
    if not copies_T.any():
        raise ValueError(
            "no head of this decoder copies: the best one's score is "
            f"{scores_TH.max():.2f}, retrofit.copying_score is {cfg.copying_score}; name "
            "layers by --config.model.cca_layers and heads by --config.retrofit.open_heads"
        )
    return tuple((np.flatnonzero(copies_T)[: cfg.num_cca_layers] + 1).tolist())


def heads_that_copy(
    cfg: RetrofitConfig,
    scores_TH: Float[np.ndarray, "T H"],
    layers: tuple[int, ...],
) -> tuple[tuple[int, ...], ...]:
    """Chooses the heads that start open, from 0, for each of these layers, lowest first."""
    return tuple(
        tuple(np.flatnonzero(scores_TH[layer - 1] >= cfg.open_score).tolist())
        for layer in sorted(layers)
    )
