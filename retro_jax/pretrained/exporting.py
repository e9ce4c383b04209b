"""A Hugging Face folder of a decoder with what was added to it, and its reading.

The decoder is what any other program reads: its own files where it was not changed, byte
for byte. Beside them lie CCA's parameters, under our names, and the settings they need.
"""

import dataclasses
import functools
import json
import os
import shutil
import tempfile
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from retro_jax.config import ModelConfig
from retro_jax.model import parameters
from retro_jax.pretrained import huggingface_folder, loading, safetensors_file
from retro_jax.pretrained.description import DECODER_FIELDS, Description
from retro_jax.pretrained.stored_tensors import StoredTensor, read_into
from retro_jax.pretrained.tensor_names import Place

WEIGHTS, CONFIG = "retro.safetensors", "retro_config.json"
_FORMAT = 1


def export(
    folder: str | Path,
    model: ModelConfig,
    params: Mapping[str, np.ndarray],
    *,
    source: str | Path,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a folder that transformers reads as the decoder, and `load_retro` as the RETRO.

    The folder appears whole, by one rename, or not at all.

    Args:
        folder: new.
        params: of the model; float32 or bfloat16.
        source: where the decoder was imported from, a folder or a GGUF file. What its
            folder holds besides weights (the tokenizer, the license) is copied.
        files: others by name, such as a tokenizer that was made of a GGUF file.
    Raises:
        ValueError: if the source is another decoder, or parameters are missing.
        FileExistsError: if there is something already.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: give a folder that is new")
    found = loading.find(source)
    _check_same_decoder(model, found.description, f"the model is not that of {source}")
    _check_shapes(model, params, "the parameters to export")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        is_changed = found.is_gguf or not all(
            _is_unchanged(found, place, stored, params[name])
            for name, (place, stored) in found.tensors.items()
        )
        if not found.is_gguf:
            _copy(found.path, work, with_weights=not is_changed)
        if is_changed:
            _write_decoder(work, found, params)
        for name, content in (files or {}).items():
            (work / os.path.basename(name)).write_bytes(content)
        _write_retro(work, model, params, found, loading.fingerprint_of(source))
        work.chmod(0o755)  # as any new folder, not as a temporary one
        os.rename(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_unchanged(
    found: loading.Source, place: Place, stored: StoredTensor, array: np.ndarray
) -> bool:
    original = loading.read(found, place, stored, str(array.dtype))
    return np.array_equal(original, array)


def _copy(source: Path, work: Path, *, with_weights: bool) -> None:
    """Copies a folder's files, and never a pickle."""
    for path in sorted(source.iterdir()):
        weights = path.name.endswith((".safetensors", ".safetensors.index.json"))
        if (
            not path.is_file()
            or path.suffix in huggingface_folder.PICKLES
            or path.name.startswith((".", "retro"))
            or (weights and not with_weights)
        ):
            continue
        shutil.copyfile(huggingface_folder.inside(source, path.name), work / path.name)


def _write_decoder(
    work: Path, found: loading.Source, params: Mapping[str, np.ndarray]
) -> None:
    """Writes the decoder's own weights, as they are now, and settings that fit them."""
    dtype = params["embedding_VD"].dtype
    if found.is_gguf:
        config = _huggingface_config(found.description)
    else:
        config = huggingface_folder.read_json(work / huggingface_folder.CONFIG)
        config.pop("dtype", None)  # another name of the same
    config["torch_dtype"] = str(dtype)
    _write_json(work / huggingface_folder.CONFIG, config)
    safetensors_file.write(
        work / huggingface_folder.WEIGHTS,
        [
            (
                place.huggingface,
                place.stored_shape,
                params[name].dtype,
                functools.partial(_as_stored, place, params[name]),
            )
            for name, (place, _) in found.tensors.items()
        ],
    )


def _as_stored(place: Place, array: np.ndarray) -> np.ndarray:
    """A parameter as Hugging Face's files have it: outputs first, no rows added."""
    if place.is_transposed:
        return np.asarray(array).reshape(place.stored_shape[::-1]).T
    return array[: place.stored_shape[0]] if array.ndim == 2 else array.reshape(-1)


def _huggingface_config(description: Description) -> dict[str, Any]:
    """The settings of a decoder that came without config.json."""
    model = description.model
    config = {
        "architectures": [description.architecture],
        "model_type": description.architecture.removesuffix("ForCausalLM").lower(),
        "vocab_size": description.vocab_rows,
        "hidden_size": model.width,
        "intermediate_size": model.ffw_width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_key_heads,
        "head_dim": model.head_size,
        "hidden_act": model.ffw_activation,
        "max_position_embeddings": description.trained_len,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rotary_base,
        "tie_word_embeddings": model.tie_output,
        "bos_token_id": description.bos_id,
        "eos_token_id": list(description.eos_ids) or None,
    }
    if model.rotary_scaling is not None:
        names = ("factor", "low_freq_factor", "high_freq_factor")
        scaling = dict(zip(names, model.rotary_scaling, strict=False))
        length = int(model.rotary_scaling[-1])
        config["rope_scaling"] = {
            "rope_type": "llama3",
            **scaling,
            "original_max_position_embeddings": length,
        }
    return config


def _write_retro(
    work: Path,
    model: ModelConfig,
    params: Mapping[str, np.ndarray],
    found: loading.Source,
    fingerprint: str,
) -> None:
    safetensors_file.write(
        work / WEIGHTS,
        [
            (name, array.shape, array.dtype, functools.partial(np.asarray, array))
            for name, array in params.items()
            if name not in found.tensors
        ],
    )
    said = {"format": _FORMAT, "made_from": fingerprint}
    _write_json(work / CONFIG, {**said, "model": dataclasses.asdict(model)})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def load_retro(folder: str | Path, *, dtype: str = "float32") -> loading.Pretrained:
    """Reads what `export` wrote: the decoder with CCA.

    Raises:
        ValueError: in one line, for what is damaged or belongs to another decoder.
        OSError: if it can't be opened.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} was not exported from here: it has no {CONFIG}")
    model = _model_of(huggingface_folder.inside(folder, CONFIG))
    path = huggingface_folder.inside(folder, WEIGHTS)
    if not path.exists():
        raise ValueError(f"{folder} lacks {WEIGHTS}")
    added = safetensors_file.stored_in(path)
    description = huggingface_folder.describe(folder)
    _check_same_decoder(model, description, f"{folder / CONFIG} is of another decoder")
    base = loading.load(folder, dtype=dtype)
    _check_shapes(model, {**base.params, **added}, str(path))
    for name, stored in added.items():
        if name in base.params:
            raise ValueError(f"{path} has {name:.80}, which is the decoder's own")
        kept = np.empty(
            (stored.num_rows, stored.shape[-1]), base.params["norm/scale_D"].dtype
        )
        try:
            read_into(kept, stored, transposed=False)
        except ValueError as error:
            raise ValueError(f"{path}: tensor {name}: {error}") from error
        base.params[name] = kept.reshape(stored.shape)
    return dataclasses.replace(base, model=model)


def _model_of(path: Path) -> ModelConfig:
    """The settings of a model that a file holds, each of its field's type."""
    values = huggingface_folder.read_json(path)
    if values.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is of format {values.get('format')!r:.20}, not {_FORMAT}"
        )
    given = values.get("model")
    types = typing.get_type_hints(ModelConfig)
    if not isinstance(given, dict) or given.keys() != types.keys():
        raise ValueError(f"{path}: model does not have the settings of a model")
    fields: dict[str, Any] = {}
    for name, value in given.items():
        value = tuple(value) if isinstance(value, list) else value
        if not _is_of(value, types[name]):
            raise ValueError(f"{path}: model.{name} can't be {value!r:.60}")
        fields[name] = value
    model = ModelConfig(**fields)
    try:
        model.validate()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return model


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type: plain ones, tuples of them, or none."""
    if options := [k for k in typing.get_args(kind) if k is type(None)]:
        others = [k for k in typing.get_args(kind) if k not in options]
        return value is None or any(_is_of(value, other) for other in others)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(_is_of(one, item) for one in value)
    return type(value) is kind or (kind is float and type(value) is int)


def _check_same_decoder(
    model: ModelConfig, description: Description, what: str
) -> None:
    for name in DECODER_FIELDS:
        ours, theirs = getattr(model, name), getattr(description.model, name)
        if ours != theirs:
            raise ValueError(f"{what}: {name} is {ours} and not {theirs}")


def _check_shapes(model: ModelConfig, given: Mapping[str, Any], what: str) -> None:
    expected = parameters.named(parameters.skeleton(dataclasses.replace(model)))
    for name in sorted(expected.keys() ^ given.keys()):
        said = "lack" if name in expected else "have besides"
        raise ValueError(f"{what} {said} {name:.80}")
    for name, leaf in expected.items():
        if given[name].shape != leaf.shape:
            raise ValueError(
                f"{what}: {name} has shape {given[name].shape}, the model {leaf.shape}"
            )
