"""A decoder in a Hugging Face folder: config.json, and safetensors in one or several files.

Weights in pickles are refused, never opened. A name in the folder leads nowhere outside of
it, but for the layout of the hub's own cache, whose snapshots are links to its blobs.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from retro_jax.pretrained import safetensors_file
from retro_jax.pretrained.description import (
    Description,
    Settings,
    decoder_config,
    head_size,
)
from retro_jax.pretrained.stored_tensors import StoredTensor

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CONFIG, WEIGHTS, INDEX = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
_MAX_CONFIG_BYTES, _MAX_INDEX_BYTES = 2**20, 2**24
_SIZES = {
    "vocab_size": "vocab_size",
    "depth": "num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "ffw_width": "intermediate_size",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Family:
    """What an architecture has, and what transformers takes where config.json is silent."""

    qkv_biases: bool = False
    qk_norms: bool = False
    num_key_heads: int | None = None  # None = as many as heads
    head_size: int | None = None  # None = width / heads
    window_len: int | None = None


FAMILIES = {
    "LlamaForCausalLM": _Family(),
    "MistralForCausalLM": _Family(num_key_heads=8, window_len=4096),
    "Qwen2ForCausalLM": _Family(qkv_biases=True, num_key_heads=32),
    "Qwen3ForCausalLM": _Family(qk_norms=True, num_key_heads=32, head_size=128),
}


def describe(folder: Path) -> Description:
    """The decoder that config.json describes.

    Raises:
        ValueError: in one line, naming the setting, for what is damaged or not expressible.
        OSError: if config.json can't be read.
    """
    if not (folder / CONFIG).exists():
        if (folder / "adapter_config.json").exists():
            raise ValueError(
                f"{folder} holds an adapter (LoRA), not a model: merge it into its model"
            )
        raise ValueError(f"{folder} is no Hugging Face folder: it has no {CONFIG}")
    path = inside(folder, CONFIG)
    settings = Settings(read_json(path, _MAX_CONFIG_BYTES), str(path))
    architecture = _architecture(settings)
    family = FAMILIES[architecture]
    _refuse_what_the_model_lacks(settings)
    heads = settings.size("num_attention_heads")
    base, scaling = _rotary(settings)
    model = decoder_config(
        settings,
        _SIZES,
        num_key_heads=settings.size(
            "num_key_value_heads",
            heads
            if "num_key_value_heads" in settings.nulls
            else family.num_key_heads or heads,
        ),
        head_size=family.head_size
        if family.head_size and "head_dim" not in settings.values
        else head_size(settings, "head_dim", "hidden_size", heads),
        tie_output=settings.flag("tie_word_embeddings", False),
        norm_epsilon=settings.number("rms_norm_eps", 1e-6),
        rotary_base=base,
        rotary_scaling=scaling,
        qkv_biases=family.qkv_biases,
        qk_norms=family.qk_norms,
        window_len=_window_len(settings, architecture),
    )
    rows = settings.size("vocab_size")
    return Description(
        model=model,
        architecture=architecture,
        vocab_rows=rows,
        trained_len=settings.size("max_position_embeddings", 2048),
        bos_id=next(iter(settings.tokens("bos_token_id", rows)), None),
        eos_ids=settings.tokens("eos_token_id", rows),
    )


def _architecture(settings: Settings) -> str:
    names = settings.values.get("architectures")
    if isinstance(names, list) and len(names) == 1 and names[0] in FAMILIES:
        return names[0]
    raise settings.wrong("architectures", f"one of {', '.join(FAMILIES)}")


def _refuse_what_the_model_lacks(settings: Settings) -> None:
    for name, allowed in (
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("mlp_bias", False),
        ("partial_rotary_factor", 1),
    ):
        if settings.values.get(name, allowed) != allowed:
            raise settings.wrong(name, f"{allowed!r}; our model has no other")
    if "quantization_config" in settings.values:
        raise ValueError(
            f"{settings.where}: quantization_config: quantised weights are read from GGUF "
            "files alone; take the model's float weights"
        )


def _window_len(settings: Settings, architecture: str) -> int | None:
    """How far back attention looks, itself included, if the same in all layers."""
    default = FAMILIES[architecture].window_len
    depth = settings.size("num_hidden_layers")
    kinds = settings.values.get("layer_types")
    if architecture == "LlamaForCausalLM" or kinds == ["full_attention"] * depth:
        return None
    if kinds not in (None, ["sliding_attention"] * depth):
        raise settings.wrong("layer_types", "the same for all layers, full or sliding")
    if kinds is None and architecture.startswith("Qwen"):
        if not settings.flag("use_sliding_window", False):
            return None
        if settings.values.get("max_window_layers") != 0:  # the first layer with one
            raise settings.wrong(
                "max_window_layers", "0: a window in all layers or none"
            )
    if kinds is None and "sliding_window" in settings.nulls:
        return None
    return settings.size("sliding_window", default, most=2**31)


def _rotary(
    settings: Settings,
) -> tuple[float, tuple[float, float, float, float] | None]:
    """The base of rotary positions and their stretch, in either way of writing."""
    new = settings.table("rope_parameters")
    rope = new if new.values else settings.table("rope_scaling")
    base = (rope if "rope_theta" in rope.values else settings).number(
        "rope_theta", 10_000.0
    )
    name = "rope_type" if "rope_type" in rope.values else "type"
    kind = rope.values.get(name, "default")
    if any(isinstance(value, dict) for value in rope.values.values()):
        raise ValueError(f"{rope.where} differs between layers, which our model can't")
    if rope.values.get("partial_rotary_factor", 1) != 1:
        raise rope.wrong("partial_rotary_factor", "1; our model has no other")
    if kind == "default":
        return base, None
    if kind != "llama3":
        raise rope.wrong(name, "default or llama3; our model has no other")
    return base, (
        rope.number("factor"),
        rope.number("low_freq_factor"),
        rope.number("high_freq_factor"),
        rope.number("original_max_position_embeddings"),
    )


def stored(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder by name, none of them read.

    Raises:
        ValueError: in one line, naming the file, for what is missing or damaged.
    """
    if (folder / WEIGHTS).exists():
        return safetensors_file.stored_in(inside(folder, WEIGHTS))
    if not (folder / INDEX).exists():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise ValueError(
                f"{folder} has weights in {pickles[0]} alone, a pickle, which can run any "
                "code and is never loaded: have it converted to safetensors"
            )
        raise ValueError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}")
    path = inside(folder, INDEX)
    weight_map = read_json(path, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise ValueError(f"{path} has no weight_map of names")
    found: dict[str, StoredTensor] = {}
    for name in sorted(set(weight_map.values())):
        if not name.endswith(".safetensors"):
            raise ValueError(
                f"{path} names {name!r:.80}, which is no file of safetensors"
            )
        shard = inside(folder, name)
        if not shard.exists():
            raise ValueError(f"{folder} lacks {name}, which {INDEX} names: fetch it")
        tensors = safetensors_file.stored_in(shard)
        for tensor in tensors:
            if weight_map.get(tensor) != name:
                raise ValueError(
                    f"{shard} has {tensor:.80}, which {INDEX} does not say"
                )
        found |= tensors
    for tensor, name in weight_map.items():
        if tensor not in found:
            raise ValueError(f"{folder / name} lacks {tensor:.80}, which {INDEX} names")
    return found


def inside(folder: Path, name: str) -> Path:
    """The path of a file of a folder.

    Raises:
        ValueError: if the name, or a link of this name, leads out of the folder, or to
            what is no plain file.
    """
    path = folder / name
    root = os.path.realpath(folder)
    allowed = [root]
    if os.path.basename(os.path.dirname(root)) == "snapshots":  # in the hub's cache
        allowed.append(os.path.join(os.path.dirname(os.path.dirname(root)), "blobs"))
    real = os.path.realpath(path)
    if os.path.basename(name) != name or os.path.dirname(real) not in allowed:
        raise ValueError(
            f"{name!r:.80} leads out of {folder}: put the file itself there"
        )
    if os.path.exists(real) and not os.path.isfile(real):
        raise ValueError(f"{path} is no file")
    return path


def read_json(path: Path, most_bytes: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object that a file of JSON holds.

    Raises:
        ValueError: naming the file, if it holds none or is larger than such a file is.
    """
    with open(path, "rb") as file:
        text = file.read(most_bytes + 1)
    if len(text) > most_bytes:
        raise ValueError(f"{path} is larger than {most_bytes} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    raise ValueError(f"{path} is no JSON, or holds no object: fetch it again")
