"""Initial parameters with which chunked cross-attention already copies.

What retrieval is good for first is copying: find in a neighbour the token that stands at
the current position, and predict the token after it. Two attentions must work together
for that, and until both do, neither gains anything; a model that sees a million tokens
instead of the paper's 419 billion never gets there (measured: DESIGN.md). So small runs
may start from parameters that mimic it, and learn from there:

- one head of the encoder's first self-attention looks at the previous token and writes
  it beside the token's own embedding;
- every head of CCA compares the decoder's token with that previous token, and copies the
  embedding of the token itself, which the tied read-out turns into its logit.

Only initial values differ; the architecture is the paper's. Source: ours, after Trockman
and Kolter 2023 (Mimetic initialization of self-attention layers, arXiv 2305.09828).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from retro_jax.config import ModelConfig
from retro_jax.model import positions

# Sharp enough that the previous token outweighs its neighbours, yet still trainable.
_POSITION_GAIN, _POSITION_BIAS = 4.0, 8.0
_MATCH_GAIN = 2.0


def copier_parameters(
    cfg: ModelConfig, params: dict[str, Array], seed: int
) -> dict[str, Array]:
    """Replaces those of random parameters that make CCA a copier.

    Args:
        cfg: with shared embeddings and at least one CCA layer.
        params: by name, as of `parameters.named`.
        seed: of the random subspaces that tokens are compared in.
    """
    key_match, key_copy = jax.random.split(jax.random.key(seed))
    size = min(cfg.head_size, cfg.encoder_head_size, cfg.width)
    # Rows and columns of one rotation: where the previous token is read and written.
    rotation_DD = jax.random.orthogonal(key_match, cfg.width)
    read_DK, write_KD = rotation_DD[:, :size], rotation_DD[:, -size:].T
    changed = dict(params)
    changed |= _previous_token_head(cfg, params, read_DK, write_KD)
    copied_DD = jax.random.orthogonal(key_copy, cfg.width)
    for layer in cfg.cca_layers:
        name = f"decoder/{layer}/cross"
        changed |= _copying_heads(cfg, params, name, read_DK, write_KD, copied_DD)
    return changed


def _previous_token_head(
    cfg: ModelConfig,
    params: dict[str, Array],
    read_DK: Float[Array, "D K"],
    write_KD: Float[Array, "K D"],
) -> dict[str, Array]:
    """The parameters of a head that attends one place back and writes down what it finds.

    It is the first head of the encoder's first layer.
    """
    name = "encoder/layers/1/attention"
    width, size = cfg.width, read_DK.shape[1]
    # The head sees the distance's highest frequencies, sine and cosine of each; its bias
    # is what distance 1 looks like, so the logit is largest there.
    num_frequencies = min(cfg.encoder_head_size // 2, width // 2)
    seen = jnp.arange(num_frequencies)
    select_DK = jnp.zeros((width, cfg.encoder_head_size))
    select_DK = select_DK.at[seen, seen].set(1.0)
    select_DK = select_DK.at[width // 2 + seen, num_frequencies + seen].set(1.0)
    one_back_D = positions.sinusoids(jnp.ones(1), width)[0]

    def first_head(parameter, value, axis):
        array = params[f"{name}/{parameter}"]
        return array.at[(slice(None),) * axis + (0,)].set(value)

    # Tokens are compared in the smaller of the two head sizes; the rest stays empty.
    def padded(x, axis):
        missing = cfg.encoder_head_size - size
        return jnp.pad(x, [(0, missing if axis == a else 0) for a in (0, 1)])

    # Content hardly counts: this head goes by distance.
    quiet_q = 0.1 * params[f"{name}/w_q_DHK"][:, 0]
    quiet_k = 0.3 * params[f"{name}/w_k_EHK"][:, 0]
    bias_K = _POSITION_BIAS * (one_back_D @ select_DK)
    return {
        f"{name}/w_q_DHK": first_head("w_q_DHK", quiet_q, 1),
        f"{name}/w_k_EHK": first_head("w_k_EHK", quiet_k, 1),
        f"{name}/w_r_DHK": first_head("w_r_DHK", _POSITION_GAIN * select_DK, 1),
        f"{name}/bias_position_HK": first_head("bias_position_HK", bias_K, 0),
        f"{name}/w_v_EHK": first_head("w_v_EHK", padded(read_DK, 1), 1),
        f"{name}/w_o_HKD": first_head("w_o_HKD", padded(write_KD, 0), 0),
    }


def _copying_heads(
    cfg: ModelConfig,
    params: dict[str, Array],
    name: str,
    read_DK: Float[Array, "D K"],
    write_KD: Float[Array, "K D"],
    copied_DD: Float[Array, "D D"],
) -> dict[str, Array]:
    """The parameters of a CCA layer whose heads copy what followed the current token.

    All heads look for it among the previous tokens, and together they copy the whole
    embedding.
    """
    heads, size = cfg.num_heads, cfg.head_size
    missing = size - read_DK.shape[1]

    def in_every_head(x_DK):
        x_DK = jnp.pad(x_DK, ((0, 0), (0, missing)))
        return jnp.repeat(x_DK[:, None], heads, axis=1)

    # Head after head takes the next columns, from the start again when all are taken.
    columns_HK = jnp.arange(heads * size).reshape(heads, size) % cfg.width
    copied_DHK = copied_DD[:, columns_HK]
    # Distance hardly counts: these heads go by content. w_o is the transpose of w_v, so what
    # the heads read is written as the embedding that it was.
    return {
        f"{name}/w_q_DHK": _MATCH_GAIN * in_every_head(read_DK),
        f"{name}/w_k_EHK": in_every_head(write_KD.T),
        f"{name}/w_r_DHK": 0.1 * params[f"{name}/w_r_DHK"],
        f"{name}/w_v_EHK": copied_DHK,
        f"{name}/w_o_HKD": copied_DHK.transpose(1, 2, 0),
    }
