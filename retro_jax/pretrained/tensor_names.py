"""Which tensor of a Hugging Face folder or of a GGUF file is which parameter of ours."""

import dataclasses
import math

from retro_jax.config import ModelConfig

# ours, Hugging Face's and GGUF's names inside of a layer
_MATRICES = {
    "attention/w_q_DHK": ("self_attn.q_proj.weight", "attn_q.weight"),
    "attention/w_k_EHK": ("self_attn.k_proj.weight", "attn_k.weight"),
    "attention/w_v_EHK": ("self_attn.v_proj.weight", "attn_v.weight"),
    "attention/w_o_HKD": ("self_attn.o_proj.weight", "attn_output.weight"),
    "ffw/w_in_DF": ("mlp.gate_proj.weight", "ffn_gate.weight"),
    "ffw/w_gate_DF": ("mlp.up_proj.weight", "ffn_up.weight"),
    "ffw/w_out_FD": ("mlp.down_proj.weight", "ffn_down.weight"),
}
_NORMS = {
    "norm_attention/scale_D": ("input_layernorm.weight", "attn_norm.weight"),
    "norm_ffw/scale_D": ("post_attention_layernorm.weight", "ffn_norm.weight"),
}
_BIASES = {
    f"attention/bias_{one}_HK": (f"self_attn.{one}_proj.bias", f"attn_{one}.bias")
    for one in "qkv"
}
_QK_NORMS = {
    f"attention/norm_{one}/scale_D": (
        f"self_attn.{one}_norm.weight",
        f"attn_{one}_norm.weight",
    )
    for one in "qk"
}


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A parameter, its shape, and the same tensor in other people's files."""

    ours: str
    shape: tuple[int, ...]
    huggingface: str
    gguf: str
    stored_shape: tuple[int, ...]  # in both kinds of files

    @property
    def is_transposed(self) -> bool:
        """Whether files have outputs first: in all matrices but tables of tokens."""
        return len(self.stored_shape) == 2 and not self.ours.endswith("_VD")


def places(model: ModelConfig, vocab_rows: int) -> list[Place]:
    """All tensors of a decoder, in the order in which they are used."""
    width, keys = model.width, model.num_key_heads or model.num_heads
    table = ((model.vocab_size, width), (vocab_rows, width))
    found = [
        _place("embedding_VD", "model.embed_tokens.weight", "token_embd.weight", *table)
    ]
    heads = {"q": model.num_heads, "k": keys, "v": keys}
    for layer in range(1, model.depth + 1):
        names = _NORMS | _MATRICES
        names |= _BIASES if model.qkv_biases else {}
        names |= _QK_NORMS if model.qk_norms else {}
        for name, (huggingface, gguf) in names.items():
            found.append(
                _place(
                    f"decoder/{layer}/{name}",
                    f"model.layers.{layer - 1}.{huggingface}",
                    f"blk.{layer - 1}.{gguf}",
                    *_shapes(name, model, heads),
                )
            )
    found.append(
        _place("norm/scale_D", "model.norm.weight", "output_norm.weight", (width,))
    )
    if not model.tie_output:
        found.append(_place("w_read_VD", "lm_head.weight", "output.weight", *table))
    return found


def _place(ours, huggingface, gguf, shape, stored_shape=None) -> Place:
    return Place(ours, shape, huggingface, gguf, stored_shape or shape)


def _shapes(
    name: str, model: ModelConfig, heads: dict[str, int]
) -> tuple[tuple[int, ...], ...]:
    """A parameter's shape here and in files."""
    letters = {"D": model.width, "E": model.width, "F": model.ffw_width}
    letters["K"] = model.head_size
    if name in _QK_NORMS:  # whose stream is a head
        letters["D"] = model.head_size
    part, _, suffix = name.rpartition("/")[2].rpartition("_")
    letters["H"] = heads.get(part.removeprefix("w_").removeprefix("bias_"), heads["q"])
    shape = tuple(letters[letter] for letter in suffix)
    if suffix in ("D", "HK"):
        return shape, (math.prod(shape),)
    inputs = 2 if suffix == "HKD" else 1  # axes that a matrix sums over
    return shape, (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
