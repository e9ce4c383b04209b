"""Tiny decoders of every family: settings by hand, weights by a rule that never changes.

Seeded bits of PCG64 are the same in every version of numpy, so the logits that transformers
gave for these weights are kept in a file (`python -m tests.retro_jax.pretrained.tiny_decoders`).
"""

import functools
import json
import zlib
from pathlib import Path

import gguf
import numpy as np

from retro_jax.pretrained import safetensors_file
from retro_jax.pretrained.huggingface_folder import describe
from retro_jax.pretrained.tensor_names import places

GOLDEN = Path(__file__).parent / "golden_logits.npz"
TOKENS = np.array([[5, 17, 63, 2, 94, 17, 63, 40, 8, 71, 33, 5]], np.int32)
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
_QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
_QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16}
CONFIGS = {
    "llama": _LLAMA,
    "llama-tied": _LLAMA | {"tie_word_embeddings": True, "head_dim": 6},
    "llama3": _LLAMA | {"rope_scaling": _LLAMA3, "eos_token_id": [2, 3]},
    "llama3-new": {
        **{name: value for name, value in _LLAMA.items() if name != "rope_theta"},
        "rope_parameters": _LLAMA3 | {"rope_theta": 1000.0},
    },
    "mistral": _LLAMA | _MISTRAL | {"sliding_window": 4},
    "qwen2": _LLAMA | _QWEN2 | {"use_sliding_window": False, "sliding_window": 4},
    "qwen2-tied": _LLAMA | _QWEN2 | {"tie_word_embeddings": True},
    "qwen3": _LLAMA | _QWEN3,
    "qwen3-tied": _LLAMA | _QWEN3 | {"tie_word_embeddings": True},
}


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder's decoder, under its name there, as float32."""
    description = describe(folder)
    found = {}
    for place in places(description.model, description.vocab_rows):
        count = int(np.prod(place.stored_shape))
        bits = np.random.PCG64(zlib.crc32(place.huggingface.encode())).random_raw(count)
        values = (bits >> 11).astype(np.float64) * 2**-52 - 1  # in [-1, 1)
        if place.huggingface.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif len(place.stored_shape) == 2:
            values *= 0.6 if "embed" in place.huggingface else 0.3
        found[place.huggingface] = values.astype(np.float32).reshape(place.stored_shape)
    return found


def write_folder(folder: Path, config: dict, *, dtype=np.float32) -> Path:
    """A Hugging Face folder of a tiny decoder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder / "model.safetensors", weights_of(folder), dtype)
    return folder


def write_weights(path: Path, weights: dict[str, np.ndarray], dtype=np.float32) -> None:
    """A file of safetensors."""
    dtype = np.dtype(dtype)
    safetensors_file.write(
        path,
        [
            (name, value.shape, dtype, functools.partial(value.astype, dtype))
            for name, value in weights.items()
        ],
    )


def write_gguf(path: Path, folder: Path, quantisation: str = "F32", **metadata) -> Path:
    """The GGUF file that llama.cpp would make of a folder; `metadata` is put over it."""
    description = describe(folder)
    model = description.model
    family = description.architecture.removesuffix("ForCausalLM").lower()
    family = "llama" if family == "mistral" else family
    writer = gguf.GGUFWriter(path, family)
    values = {
        f"{family}.block_count": model.depth,
        f"{family}.context_length": description.trained_len,
        f"{family}.embedding_length": model.width,
        f"{family}.feed_forward_length": model.ffw_width,
        f"{family}.attention.head_count": model.num_heads,
        f"{family}.attention.head_count_kv": model.num_key_heads,
        f"{family}.attention.key_length": model.head_size,
        f"{family}.attention.layer_norm_rms_epsilon": model.norm_epsilon,
        f"{family}.rope.freq_base": model.rotary_base,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(description.vocab_rows)],
    } | {name.replace("__", "."): value for name, value in metadata.items()}
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for name, value in values.items():
        if name == "general.alignment" and value:
            writer.add_custom_alignment(value)
        elif name != "general.architecture":
            add.get(type(value), writer.add_array)(name, value)
    form = gguf.GGMLQuantizationType[quantisation]
    weights = weights_of(folder)
    for place in places(model, description.vocab_rows):
        value = weights[place.huggingface]
        if family == "llama" and place.gguf.endswith(
            ("attn_q.weight", "attn_k.weight")
        ):
            rows = value.reshape(-1, 2, model.head_size // 2, value.shape[-1])
            value = rows.swapaxes(1, 2).reshape(value.shape)  # as llama.cpp permutes
        if value.ndim == 1 or form == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(place.gguf, np.ascontiguousarray(value))
        else:
            data = gguf.quantize(np.ascontiguousarray(value), form)
            writer.add_tensor(place.gguf, data, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def transformers_logits(folder: Path, tokens=TOKENS) -> np.ndarray:
    """What transformers makes of a folder."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))).logits.numpy()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as work:
        np.savez(
            GOLDEN,
            **{
                name: transformers_logits(write_folder(Path(work) / name, config))
                for name, config in CONFIGS.items()
            },
        )
