"""RETRO written token by token in float64, from the paper's formulas; slow and plain.

Source: Borgeaud et al. 2022, sections 2.3 and 2.4, algorithm 1. Shares no code with
`retro_jax`; takes its flat dict of parameters. Without segments and padding.
"""

import numpy as np


def below(params, prefix: str) -> dict[str, np.ndarray]:
    """The parameters whose names begin with `prefix/`, without it."""
    return {
        name.removeprefix(prefix + "/"): np.asarray(value, np.float64)
        for name, value in params.items()
        if name.startswith(prefix + "/")
    }


def look_up(table_VD, tokens_L):
    """Ours: times sqrt(D)."""
    return np.asarray(table_VD, np.float64)[tokens_L] * np.sqrt(table_VD.shape[1])


def rms_norm(x, scale_D):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * scale_D


def feed_forward(x, w):
    inner = x @ w["w_in_DF"]
    cubic = np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)
    return (inner * (1 + np.tanh(cubic)) / 2) @ w["w_out_FD"]


def sinusoid(distance: int, width: int) -> np.ndarray:
    angles = [distance / 10_000 ** (2 * i / width) for i in range(width // 2)]
    return np.array([*map(np.sin, angles), *map(np.cos, angles)])


def attend_one(w, query_D, keys_XE, distances) -> np.ndarray:
    """One query over a list of keys at these distances; zeros if there are none."""
    if len(keys_XE) == 0:
        return np.zeros_like(query_D)
    width, num_heads, head_size = w["w_q_DHK"].shape
    update_D = np.zeros(width)
    for head in range(num_heads):
        query_K = query_D @ w["w_q_DHK"][:, head]
        logits = []
        for key_E, distance in zip(keys_XE, distances, strict=True):
            relative_K = sinusoid(distance, width) @ w["w_r_DHK"][:, head]
            content = (query_K + w["bias_content_HK"][head]) @ (
                key_E @ w["w_k_EHK"][:, head]
            )
            position = (query_K + w["bias_position_HK"][head]) @ relative_K
            logits.append((content + position) / np.sqrt(head_size))
        weights = np.exp(np.array(logits) - max(logits))
        weights /= weights.sum()
        values_XK = np.stack([key_E @ w["w_v_EHK"][:, head] for key_E in keys_XE])
        update_D += (weights @ values_XK) @ w["w_o_HKD"][head]
    return update_D


def self_attention(w, x_LD, *, causal: bool, length: int | None = None):
    """`length`: how many keys are real, all if not given."""
    rows = []
    for i in range(len(x_LD)):
        keys = [j for j in range(len(x_LD)) if j <= i or not causal]
        keys = [j for j in keys if length is None or j < length]
        rows.append(attend_one(w, x_LD[i], x_LD[keys], [i - j for j in keys]))
    return np.stack(rows)


def chunked_cross_attention(w, x_LD, encoded_CNRE, lengths_CN, chunk_len: int):
    """Section 2.3: position t reads chunk (t + 1) // M - 1, distance i - i' + m - 1."""
    update_LD = np.zeros_like(x_LD)
    for t in range(chunk_len - 1, len(x_LD)):
        chunk = (t + 1) // chunk_len - 1
        i = (t + 1) % chunk_len  # place in the attending chunk
        keys, distances = [], []
        for neighbour, length in enumerate(lengths_CN[chunk]):
            for place in range(length):
                keys.append(encoded_CNRE[chunk, neighbour, place])
                distances.append(i - place + chunk_len - 1)
        update_LD[t] = attend_one(w, x_LD[t], np.array(keys), distances)
    return update_LD


def encode(cfg, params, tokens_R, length: int, chunk_ME):
    """One neighbour in the light of its chunk; distance i' - i."""
    x = look_up(params["encoder/embedding_VE"], tokens_R)
    for layer in range(1, cfg.encoder_depth + 1):
        w = below(params, f"encoder/layers/{layer}")
        normed = rms_norm(x, w["norm_attention/scale_D"])
        attention = below(w, "attention")
        x = x + self_attention(attention, normed, causal=False, length=length)
        if layer in cfg.encoder_cca_layers:
            normed = rms_norm(x, w["norm_cross/scale_D"])
            x = x + np.stack(
                [
                    attend_one(
                        below(w, "cross"),
                        normed[place],
                        chunk_ME,
                        [place - i for i in range(len(chunk_ME))],
                    )
                    for place in range(len(x))
                ]
            )
        normed = rms_norm(x, w["norm_ffw/scale_D"])
        x = x + feed_forward(normed, below(w, "ffw"))
    return rms_norm(x, np.asarray(params["encoder/norm/scale_D"], np.float64))


def logits(cfg, params, inputs_L, neighbours_CNR=None, lengths_CN=None):
    """Algorithm 1, for one sequence; tied read-out, embeddings not shared."""
    table_VD = np.asarray(params["embedding_VD"], np.float64)
    hidden = look_up(table_VD, inputs_L)
    encoded = None
    for layer in range(1, cfg.depth + 1):
        w = below(params, f"decoder/{layer}")
        normed = rms_norm(hidden, w["norm_attention/scale_D"])
        hidden = hidden + self_attention(below(w, "attention"), normed, causal=True)
        if layer in cfg.cca_layers and neighbours_CNR is not None:
            if encoded is None:
                chunks = hidden[: len(hidden) // cfg.chunk_len * cfg.chunk_len]
                chunks = chunks.reshape(-1, cfg.chunk_len, cfg.width)
                encoded = np.stack(
                    [
                        [
                            encode(cfg, params, tokens_R, length, chunk)
                            for tokens_R, length in zip(tokens, lengths, strict=True)
                        ]
                        for tokens, lengths, chunk in zip(
                            neighbours_CNR, lengths_CN, chunks, strict=True
                        )
                    ]
                )
            normed = rms_norm(hidden, w["norm_cross/scale_D"])
            hidden = hidden + chunked_cross_attention(
                below(w, "cross"), normed, encoded, lengths_CN, cfg.chunk_len
            )
        normed = rms_norm(hidden, w["norm_ffw/scale_D"])
        hidden = hidden + feed_forward(normed, below(w, "ffw"))
    return rms_norm(hidden, np.asarray(params["norm/scale_D"])) @ table_VD.T
