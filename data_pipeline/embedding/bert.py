"""A frozen BERT in plain JAX, read from a folder of safetensors and JSON.

`embedder.py` calls it; nothing else does. Activations are float32 and so is every
accumulation; in the default precision only the operands of the matrix products are
bfloat16, which is twice as fast as float32 on a CPU and native on accelerators. (Products
that also *return* bfloat16 are emulated on CPUs and slower than float32.)

Letters here: T tokens of all rows, E width of the stream, L places of a row.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

Precision = Literal["bfloat16", "float32"]
Params = dict[str, Array]

_MASKED = -1e9  # finite, so that a row without a single token gives no NaN


@dataclasses.dataclass(kw_only=True, slots=True, frozen=True)
class BertConfig:
    """Sizes of a BERT and how its token vectors become one vector."""

    vocab_size: int
    depth: int  # layers
    width: int  # E, which is also W, the width of the embedding
    num_heads: int
    layer_norm_eps: float
    max_length: int  # word pieces, [CLS] and [SEP] included
    pooling: Literal["mean", "cls"]


@dataclasses.dataclass(kw_only=True, slots=True, frozen=True)
class Bert:
    """Weights on every device, their configuration and what identifies them."""

    config: BertConfig
    precision: Precision
    params: Params
    weights_sha256: str
    mesh: Mesh

    def __call__(
        self, tokens_BL: Int[np.ndarray, "B L"], lengths_B: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, "B W"]:
        """Embeds padded rows of word pieces; fastest from a few threads at once.

        The rows are split over the devices, if their number can be.
        """
        rows = P("data" if len(lengths_B) % self.mesh.size == 0 else None)
        batch = jax.device_put((tokens_BL, lengths_B), NamedSharding(self.mesh, rows))
        return np.asarray(
            embed_tokens(self.params, *batch, self.config, self.precision)
        )


def load_bert(
    folder: str | os.PathLike[str],
    *,
    precision: Precision = "bfloat16",
    expected_sha256: str | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Bert:
    """Reads a BERT folder as Hugging Face and sentence-transformers write it.

    Args:
      folder: has config.json, model.safetensors and, if made by sentence-transformers,
        modules.json, sentence_bert_config.json and 1_Pooling/config.json.
      precision: operands of the matrix products; sums are float32 in both.
      expected_sha256: of model.safetensors, hexadecimal; not checked when None.
      devices: that share each batch; this process's, if not given. CPUs are one.
    Raises:
      FileNotFoundError: when config.json or model.safetensors is missing.
      ValueError: when the weights are not the expected ones, the folder describes
        something this file does not compute, or there is an accelerator that can't be used.
    """
    if precision not in ("bfloat16", "float32"):
        raise ValueError(f"precision must be bfloat16 or float32, not {precision!r}")
    folder = pathlib.Path(folder)
    config = read_config(folder)
    path = folder / "model.safetensors"
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise ValueError(
            f"{path} has sha256 {sha256}, expected {expected_sha256}: "
            "the file is damaged or another model; install it again"
        )
    mesh = Mesh(np.array(devices or _default_devices()), "data")
    params = _read_params(path, config, precision)
    return Bert(
        config=config,
        precision=precision,
        params=jax.device_put(params, NamedSharding(mesh, P())),
        weights_sha256=sha256,
        mesh=mesh,
    )


def _default_devices() -> list[jax.Device]:
    """Simulated CPUs share their cores: more than one would only be slower.

    Raises:
      ValueError: when this machine's accelerator can't be used.
    """
    try:
        devices = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the second where none is there
        raise ValueError(
            f"JAX can't use this machine's accelerator ({str(error) or 'it finds none'}): free "
            "it, or embed on the processor with JAX_PLATFORMS=cpu"
        ) from error
    return devices[:1] if devices[0].platform == "cpu" else devices


def read_config(folder: pathlib.Path) -> BertConfig:
    """Reads sizes and pooling of a BERT folder; pooling is the mean unless it says so.

    Raises:
      FileNotFoundError: when there is no config.json.
      ValueError: for any other architecture, activation, pooling or extra module.
    """
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key, wanted in (
        ("model_type", "bert"),
        ("hidden_act", "gelu"),
        ("position_embedding_type", "absolute"),
    ):
        if model.get(key, wanted) != wanted:
            raise ValueError(f"{folder}: {key} is {model[key]!r}, only {wanted!r} runs")
    sentence = _read_json(folder / "sentence_bert_config.json") or {}
    positions = int(model["max_position_embeddings"])
    return BertConfig(
        vocab_size=int(model["vocab_size"]),
        depth=int(model["num_hidden_layers"]),
        width=int(model["hidden_size"]),
        num_heads=int(model["num_attention_heads"]),
        layer_norm_eps=float(model.get("layer_norm_eps", 1e-12)),
        max_length=min(int(sentence.get("max_seq_length") or positions), positions),
        pooling=_read_pooling(folder),
    )


def _read_json(path: pathlib.Path) -> Any:
    """An optional JSON file: None when it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _read_pooling(folder: pathlib.Path) -> Literal["mean", "cls"]:
    """The pooling of a sentence-transformers folder that adds no other module."""
    modules = _read_json(folder / "modules.json") or []
    kinds = {module["type"].rsplit(".", 1)[-1] for module in modules}
    if not kinds <= {"Transformer", "Pooling", "Normalize"}:
        raise ValueError(f"{folder}: modules {sorted(kinds)} are more than a BERT")
    facts = _read_json(folder / "1_Pooling" / "config.json") or {}
    modes = {name for name, on in facts.items() if name.startswith("pooling_") and on}
    if modes == {"pooling_mode_cls_token"}:
        return "cls"
    if modes <= {"pooling_mode_mean_tokens"}:
        return "mean"
    raise ValueError(f"{folder}: pooling {sorted(modes)} is neither mean nor cls")


def _read_params(path: pathlib.Path, config: BertConfig, precision: str) -> Params:
    """Maps PyTorch names and layouts (out, in) to ours (in, out), on the device."""
    from safetensors import safe_open

    # Old files call the scale of a layer norm gamma, and bert-base has a prefix.
    with safe_open(os.fspath(path), framework="numpy") as file:
        stored = {
            name.removeprefix("bert.")
            .replace("LayerNorm.gamma", "LayerNorm.weight")
            .replace("LayerNorm.beta", "LayerNorm.bias"): name
            for name in sorted(file.keys())
        }

        def read(name: str) -> np.ndarray:
            if name not in stored:
                raise ValueError(f"{path}: no tensor {name}, so this is not a BERT")
            return file.get_tensor(stored[name]).astype(np.float32)

        arrays = _read_embeddings(read)
        for layer in range(config.depth):
            arrays |= _read_layer(read, layer)
    # The operands of matrix products follow the precision, all else is float32.
    return {
        name: jnp.asarray(array, precision if "/w_" in name else "float32")
        for name, array in arrays.items()
    }


def _read_embeddings(read: Any) -> dict[str, np.ndarray]:
    # Single texts have token type 0 throughout: it is part of the position vectors.
    types_2E = read("embeddings.token_type_embeddings.weight")
    return {
        "words_VE": read("embeddings.word_embeddings.weight"),
        "positions_LE": read("embeddings.position_embeddings.weight") + types_2E[0],
        "norm_scale_E": read("embeddings.LayerNorm.weight"),
        "norm_bias_E": read("embeddings.LayerNorm.bias"),
    }


def _read_layer(read: Any, layer: int) -> dict[str, np.ndarray]:
    """The arrays of one layer; queries, keys and values (F = 3 E) are one product."""
    source = f"encoder.layer.{layer}"
    attention = f"{source}.attention"
    parts = [f"{attention}.self.{part}" for part in ("query", "key", "value")]
    arrays = {
        "w_qkv_EF": np.concatenate(
            [read(f"{part}.weight").T for part in parts], axis=1
        ),
        "b_qkv_F": np.concatenate([read(f"{part}.bias") for part in parts]),
        "w_out_EE": read(f"{attention}.output.dense.weight").T,
        "b_out_E": read(f"{attention}.output.dense.bias"),
        "attention_norm_scale_E": read(f"{attention}.output.LayerNorm.weight"),
        "attention_norm_bias_E": read(f"{attention}.output.LayerNorm.bias"),
        "w_up_EF": read(f"{source}.intermediate.dense.weight").T,
        "b_up_F": read(f"{source}.intermediate.dense.bias"),
        "w_down_FE": read(f"{source}.output.dense.weight").T,
        "b_down_E": read(f"{source}.output.dense.bias"),
        "ffw_norm_scale_E": read(f"{source}.output.LayerNorm.weight"),
        "ffw_norm_bias_E": read(f"{source}.output.LayerNorm.bias"),
    }
    return {f"layers/{layer}/{name}": array for name, array in arrays.items()}


@functools.partial(jax.jit, static_argnames=("config", "precision"))
def embed_tokens(
    params: Params,
    tokens_BL: Int[Array, "B L"],
    lengths_B: Int[Array, " B"],
    config: BertConfig,
    precision: Precision,
) -> Float[Array, "B W"]:
    """Gives one unit vector for each row of word pieces.

    Tokens from `lengths_B` on are padding and change nothing; a row of length 0 gives a
    finite vector without meaning. L is at most `config.max_length`.

    Source: Devlin et al. 2019 (arXiv 1810.04805); pooling over all tokens, special ones
    included, as sentence-transformers does (Reimers and Gurevych 2019, section 3).
    """
    is_token_BL = jnp.arange(tokens_BL.shape[1]) < lengths_B[:, None]
    bias_B11S = jnp.where(is_token_BL, 0.0, _MASKED)[:, None, None, :]
    hidden_BLE = params["words_VE"][tokens_BL]
    hidden_BLE += params["positions_LE"][: tokens_BL.shape[1]]
    # All tokens in one axis T = B L: plain matrix products, a tenth faster on CPUs.
    hidden_TE = _layer_norm(
        params, "norm", hidden_BLE.reshape(-1, config.width), config.layer_norm_eps
    )
    for layer in range(config.depth):
        prefix = f"layers/{layer}/"
        weights = {
            name.removeprefix(prefix): array
            for name, array in params.items()
            if name.startswith(prefix)
        }
        hidden_TE = _layer(weights, hidden_TE, bias_B11S, config, precision)
    hidden_BLE = hidden_TE.reshape(hidden_BLE.shape)
    if config.pooling == "cls":
        pooled_BE = hidden_BLE[:, 0]
    else:  # the length of the sum does not matter, the vector is normalised
        pooled_BE = jnp.sum(hidden_BLE * is_token_BL[:, :, None], axis=1)
    norm_B1 = jnp.linalg.norm(pooled_BE, axis=-1, keepdims=True)
    return pooled_BE / jnp.maximum(norm_B1, 1e-12)


def _layer(
    weights: Params,
    hidden_TE: Array,
    bias_B11S: Array,
    config: BertConfig,
    precision: str,
) -> Array:
    dot = functools.partial(_dot, precision)
    qkv_TF = dot("TE,EF->TF", hidden_TE, weights["w_qkv_EF"]) + weights["b_qkv_F"]
    read_TE = _attend(qkv_TF, bias_B11S, config, precision)
    hidden_TE += dot("TD,DE->TE", read_TE, weights["w_out_EE"]) + weights["b_out_E"]
    hidden_TE = _layer_norm(weights, "attention_norm", hidden_TE, config.layer_norm_eps)
    inner_TF = dot("TE,EF->TF", hidden_TE, weights["w_up_EF"]) + weights["b_up_F"]
    inner_TF = jax.nn.gelu(inner_TF, approximate=False)  # erf; tanh is not faster
    hidden_TE += dot("TF,FE->TE", inner_TF, weights["w_down_FE"]) + weights["b_down_E"]
    return _layer_norm(weights, "ffw_norm", hidden_TE, config.layer_norm_eps)


def _attend(
    qkv_TF: Array, bias_B11S: Array, config: BertConfig, precision: str
) -> Array:
    """The attention of every token over the tokens of its row, (T, E)."""
    # The many small products of attention: bfloat16 would be slower on CPUs.
    on_cpu = jax.default_backend() == "cpu"
    attend = functools.partial(_dot, "float32" if on_cpu else precision)
    heads = (config.num_heads, config.width // config.num_heads)
    qkv_BL3HK = qkv_TF.reshape(len(bias_B11S), -1, 3, *heads)
    q_BHLK, k_BHSK, v_BHSK = qkv_BL3HK.transpose(2, 0, 3, 1, 4)
    logits_BHLS = attend("BHLK,BHSK->BHLS", q_BHLK * heads[1] ** -0.5, k_BHSK)
    shares_BHLS = jax.nn.softmax(logits_BHLS + bias_B11S, axis=-1)
    read_BHLK = attend("BHLS,BHSK->BHLK", shares_BHLS, v_BHSK)
    return read_BHLK.transpose(0, 2, 1, 3).reshape(-1, config.width)


def _dot(precision: str, einsum: str, left: Array, right: Array) -> Array:
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    return jnp.einsum(
        einsum,
        left.astype(dtype),
        right.astype(dtype),
        precision=jax.lax.Precision.HIGHEST if precision == "float32" else None,
        preferred_element_type=jnp.float32,
    )


def _layer_norm(params: Params, name: str, hidden_TE: Array, eps: float) -> Array:
    # Both moments in one pass: after a layer norm the mean is small against the spread.
    mean_T1 = jnp.mean(hidden_TE, axis=-1, keepdims=True)
    square_T1 = jnp.mean(jnp.square(hidden_TE), axis=-1, keepdims=True)
    normal_TE = hidden_TE - mean_T1
    normal_TE *= jax.lax.rsqrt(square_T1 - jnp.square(mean_T1) + eps)
    return normal_TE * params[f"{name}_scale_E"] + params[f"{name}_bias_E"]


def default_rows() -> int:
    """Rows of a batch that keep this machine busy: its caches, or its accelerator."""
    return (
        8
        if jax.default_backend() == "cpu"
        else 256 << (jax.local_device_count() - 1).bit_length()
    )


def default_callers() -> int:
    """Threads that give the device batches: one a core, or two to keep it fed."""
    return os.cpu_count() or 1 if jax.default_backend() == "cpu" else 2
