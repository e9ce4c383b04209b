"""A model as a folder that needs nothing else, and its reading.

Of a pretrained decoder the folder is what any other program reads: its own files where it
was not changed, byte for byte. Beside them lie CCA's parameters, under our names, and the
settings they need. A model from scratch has all of its parameters there.
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

import jax.numpy as jnp
import numpy as np

from retro_jax.config import ModelConfig
from retro_jax.model import Retro, parameters
from retro_jax.pretrained import hub, huggingface_folder, loading, safetensors_file
from retro_jax.pretrained.description import DECODER_FIELDS, Description
from retro_jax.pretrained.stored_tensors import StoredTensor, read_into
from retro_jax.pretrained.tensor_names import Place

WEIGHTS, CONFIG = "retro.safetensors", "retro_config.json"
_FORMAT = 1
_ABOUT = ("generation", "tokenizer", "database")
_ALWAYS_THERE = "norm/scale_D"  # whose type is that of all parameters


def export(
    folder: str | Path,
    model: ModelConfig,
    params: Mapping[str, np.ndarray],
    *,
    source: str | Path | None,
    files: Mapping[str, bytes] | None = None,
    about: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes a folder that `load_retro` reads, and transformers if it is of a decoder.

    The folder appears whole, by one rename, or not at all.

    Args:
        folder: new.
        params: of the model; float32 or bfloat16.
        source: where the decoder was imported from, a folder or a GGUF file; None for a
            model from scratch. What its folder holds besides weights (the tokenizer, the
            license) is copied.
        files: others by name, such as a tokenizer that was made of a GGUF file.
        about: what else `load_retro` is to give, as JSON: how the model generates, and
            which tokenizer and database it belongs to.
    Raises:
        ValueError: if the source is another decoder, or parameters are missing.
        FileExistsError: if there is something already.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: give a folder that is new")
    found = None if source is None else loading.find(source)
    if found is not None:
        _check_same_decoder(
            model, found.description, f"the model is not that of {source}"
        )
    _check_shapes(model, params, "the parameters to export")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        if found is not None:
            _write_source(work, found, params)
        for name, content in (files or {}).items():
            (work / os.path.basename(name)).write_bytes(content)
        said = {name: (about or {}).get(name, {}) for name in _ABOUT}
        _write_retro(work, model, params, found, said)
        work.chmod(0o755)  # as any new folder, not as a temporary one
        os.rename(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_source(
    work: Path, found: loading.Source, params: Mapping[str, np.ndarray]
) -> None:
    """Writes the decoder as other programs read it: its own files, or its weights now."""
    is_changed = found.is_gguf or not all(
        _is_unchanged(found, place, stored, params[name])
        for name, (place, stored) in found.tensors.items()
    )
    if not found.is_gguf:
        _copy(found.path, work, with_weights=not is_changed)
    if is_changed:
        _write_decoder(work, found, params)


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
    found: loading.Source | None,
    about: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes what is ours alone: the parameters that the decoder has not, and settings."""
    decoders = found.tensors if found is not None else {}
    safetensors_file.write(
        work / WEIGHTS,
        [
            (name, array.shape, array.dtype, functools.partial(np.asarray, array))
            for name, array in params.items()
            if name not in decoders
        ],
    )
    made_from = None if found is None else loading.fingerprint_of(found.path)
    said = {
        "format": _FORMAT,
        "made_from": made_from,
        "dtype": str(params[_ALWAYS_THERE].dtype),
        **about,
    }
    _write_json(work / CONFIG, {**said, "model": dataclasses.asdict(model)})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What an exported folder holds, all but the tokenizer's own file.

    Attributes:
        params: named as `parameters.named` does.
        generation: how the run that was exported generates, as JSON.
        tokenizer: the fingerprint, and the ids of tokens with a meaning.
        database: the fingerprint and the version of the one the model belongs to; empty
            if that is not known.
    """

    model: ModelConfig
    params: dict[str, np.ndarray]
    generation: dict[str, Any]
    tokenizer: dict[str, Any]
    database: dict[str, Any]


def load_retro(folder: str | Path, *, dtype: str = "") -> Exported:
    """Reads what `export` wrote.

    Args:
        dtype: of the parameters, float32 or bfloat16; if not given, as they were.
    Raises:
        ValueError: in one line, for what is damaged or belongs to another decoder.
        OSError: if it can't be opened.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} was not exported from here: it has no {CONFIG}")
    path = huggingface_folder.inside(folder, CONFIG)
    said = _config_in(path)
    model, dtype = _model_in(path, said), dtype or said.get("dtype", "float32")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"{path}: dtype can't be {dtype!r:.60}")
    path = huggingface_folder.inside(folder, WEIGHTS)
    if not path.exists():
        raise ValueError(f"{folder} lacks {WEIGHTS}")
    added = safetensors_file.stored_in(path)
    params: dict[str, np.ndarray] = {}
    if model.encoder == "decoder":
        description = huggingface_folder.describe(folder)
        _check_same_decoder(
            model, description, f"{folder / CONFIG} is of another decoder"
        )
        params = loading.load(folder, dtype=dtype).params
    if model.depth > len(params) + len(added):  # before it is laid out, however deep
        raise ValueError(f"{path} lacks layers: the model has {model.depth}")
    _check_shapes(model, {**params, **added}, str(path))
    for name, stored in added.items():
        if name in params:
            raise ValueError(f"{path} has {name:.80}, which is the decoder's own")
        kept = np.empty((stored.num_rows, stored.shape[-1]), jnp.dtype(dtype))
        try:
            read_into(kept, stored, transposed=False)
        except ValueError as error:
            raise ValueError(f"{path}: tensor {name}: {error}") from error
        params[name] = kept.reshape(stored.shape)
    return Exported(
        model=model, params=params, **{name: said.get(name, {}) for name in _ABOUT}
    )


def from_pretrained(folder_or_name: str | Path, *, dtype: str = "") -> Retro:
    """The model of an exported folder, or of a repository of the hub that holds one.

    Args:
        folder_or_name: what exists as a folder is one; else OWNER/NAME[@REVISION]. With
            HF_HUB_OFFLINE=1 a repository that was fetched before is read from the cache.
        dtype: of the parameters, float32 or bfloat16; if not given, as they were.
    Raises:
        ValueError: in one line, for a name without a model, or a damaged folder.
        OSError: if it can't be opened.
    """
    folder = Path(folder_or_name).expanduser()
    if not folder.exists() and hub.is_name(str(folder_or_name)):
        folder = hub.fetched(str(folder_or_name))
    found = load_retro(folder, dtype=dtype)
    arrays = {name: jnp.asarray(array) for name, array in found.params.items()}
    return parameters.rebuild(found.model, arrays)


def _config_in(path: Path) -> dict[str, Any]:
    """What a settings file says, if it is of our format."""
    said = huggingface_folder.read_json(path)
    number = said.get("format")
    if type(number) is int and number > _FORMAT:
        raise ValueError(
            f"{path} is of format {number}, this version of retro-jax reads {_FORMAT}: "
            "update retro-jax"
        )
    if type(number) is not int or number != _FORMAT:
        raise ValueError(f"{path} is of format {number!r:.20}, not {_FORMAT}")
    for name in _ABOUT:
        if type(said.get(name, {})) is not dict:
            raise ValueError(f"{path}: {name} holds no object")
    return said


def _model_in(path: Path, said: Mapping[str, Any]) -> ModelConfig:
    """The settings of a model that a file says, each of its field's type."""
    given = said.get("model")
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
