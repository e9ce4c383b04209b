"""Folders that are written back: read by transformers' names, and by `load_retro` whole."""

import dataclasses
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.model import parameters
from retro_jax.pretrained import exporting, loading
from tests import tiny_model
from tests.retro_jax.pretrained.tiny_decoders import (
    CONFIGS,
    transformers_logits,
    write_folder,
    write_gguf,
    write_weights,
)


def _retro(source, dtype="float32"):
    """A RETRO of an imported decoder: its settings, and parameters with a CCA."""
    loaded = loading.load(source, dtype=dtype)
    model = dataclasses.replace(
        loaded.model, cca_layers=(2,), encoder="decoder", bos_id=0, chunk_len=4
    )
    initial = parameters.initial_parameters(model, 0)
    added = {
        name: np.asarray(array).astype(dtype)
        for name, array in initial.items()
        if name not in loaded.params
    }
    assert "decoder/2/cross/gate_H" in added
    return model, {**loaded.params, **added}


@pytest.mark.parametrize("stored", [np.float32, np.float16, jnp.bfloat16])
def test_an_unchanged_decoder_is_copied_byte_for_byte(stored, tmp_path):
    source = write_folder(tmp_path / "source", CONFIGS["llama"], dtype=stored)
    (source / "tokenizer.json").write_text("{}")
    (source / "pytorch_model.bin").write_bytes(b"never")
    model, params = _retro(source)
    exporting.export(tmp_path / "out", model, params, source=source)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "retro.safetensors",
        "retro_config.json",
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", [False, True])
def test_what_was_exported_comes_back(change, dtype, tmp_path):
    source = write_folder(tmp_path / "source", CONFIGS["qwen3"], dtype=jnp.bfloat16)
    model, params = _retro(source, dtype)
    if change:
        other = params["decoder/2/attention/w_o_HKD"]
        params["decoder/1/attention/w_o_HKD"] = other + other
    exporting.export(tmp_path / "out", model, params, source=source)
    back = exporting.load_retro(tmp_path / "out", dtype=dtype)
    assert back.model == model and back.params.keys() == params.keys()
    for name, array in params.items():
        assert back.params[name].dtype == array.dtype
        np.testing.assert_array_equal(back.params[name], array)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("torch_dtype") == (dtype if change else None)


def test_a_gguf_file_becomes_a_folder(tmp_path):
    folder = write_folder(tmp_path / "hf", CONFIGS["qwen2-tied"])
    source = write_gguf(tmp_path / "m.gguf", folder)
    model, params = _retro(source)
    files = {"tokenizer.json": b"{}"}
    exporting.export(tmp_path / "out", model, params, source=source, files=files)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == b"{}"
    described, original = map(loading.config_of, (tmp_path / "out", source))
    assert described == original
    back = exporting.load_retro(tmp_path / "out")
    for name, array in params.items():
        np.testing.assert_array_equal(back.params[name], array)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["llama3", "qwen3-tied"])
def test_transformers_reads_what_was_changed_or_quantised(name, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config = CONFIGS[name] | {"rope_scaling": None}  # of other lengths than GGUF knows
    source = write_gguf(tmp_path / "m.gguf", write_folder(tmp_path / "hf", config))
    model, params = _retro(source)
    exporting.export(tmp_path / "out", model, params, source=source)
    expected, exported = map(transformers_logits, (tmp_path / "hf", tmp_path / "out"))
    np.testing.assert_array_equal(exported, expected)


def test_settings_of_llama3_come_back(tmp_path):
    description = loading.config_of(write_folder(tmp_path, CONFIGS["llama3"]))
    config = exporting._huggingface_config(description)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert loading.config_of(tmp_path) == description


def test_nothing_stays_of_an_export_that_fails(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "source", CONFIGS["llama"])
    model, params = _retro(source)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_write_json", full)
    with pytest.raises(OSError, match="No space"):
        exporting.export(tmp_path / "out", model, params, source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_can_not_be_exported_is_named(tmp_path):
    source = write_folder(tmp_path / "source", CONFIGS["llama"])
    model, params = _retro(source)
    other = dataclasses.replace(model, rotary_base=7.0)
    with pytest.raises(ValueError, match="not that of .*: rotary_base is 7.0 and not"):
        exporting.export(tmp_path / "out", other, params, source=source)
    gates = params.pop("decoder/2/cross/gate_H")
    with pytest.raises(ValueError, match="lack decoder/2/cross/gate_H"):
        exporting.export(tmp_path / "out", model, params, source=source)
    params["decoder/2/cross/gate_H"] = gates[1:]
    with pytest.raises(ValueError, match="gate_H has shape"):
        exporting.export(tmp_path / "out", model, params, source=source)
    with pytest.raises(FileExistsError, match="source exists"):
        exporting.export(source, model, params, source=source)


def _rewrite(change):
    def damage(folder):
        said = json.loads((folder / "retro_config.json").read_text())
        change(said)
        (folder / "retro_config.json").write_text(json.dumps(said))

    return damage


def _model(**changes):
    return _rewrite(lambda said: said["model"].update(changes))


def test_a_model_from_scratch_comes_back(tmp_path):
    model = tiny_model.config()
    params = {
        name: np.asarray(array)
        for name, array in parameters.initial_parameters(model, 0).items()
    }
    about = {"generation": {"num_neighbours": 2}, "database": {"fingerprint": "a"}}
    files = {"tokenizer.model": b"t"}
    out = tmp_path / "out"
    exporting.export(out, model, params, source=None, files=files, about=about)
    names = {"retro.safetensors", "retro_config.json", "tokenizer.model"}
    assert {path.name for path in out.iterdir()} == names
    back = exporting.load_retro(out)
    assert back.model == model and back.params.keys() == params.keys()
    for name, array in params.items():
        np.testing.assert_array_equal(back.params[name], array)
    assert {"generation": back.generation, "database": back.database} == about
    made = exporting.from_pretrained(out)
    assert made.cfg == model and parameters.named(made).keys() == params.keys()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        exporting.from_pretrained(tmp_path / "nothing")


_BAD = {
    "no settings": (
        lambda f: (f / "retro_config.json").unlink(),
        "not exported from here",
    ),
    "no weights": (
        lambda f: (f / "retro.safetensors").unlink(),
        "lacks retro.safetensors",
    ),
    "no JSON": (lambda f: (f / "retro_config.json").write_text("["), "is no JSON"),
    "a later format": (
        _rewrite(lambda said: said.update(format=2)),
        "update retro-jax",
    ),
    "another format": (
        _rewrite(lambda said: said.update(format="x")),
        "is of format 'x', not 1",
    ),
    "true for a format": (
        _rewrite(lambda said: said.update(format=True)),
        "is of format True",
    ),
    "another kind of number": (
        _rewrite(lambda said: said.update(dtype="int8")),
        "dtype can't be 'int8'",
    ),
    "a list of settings": (
        _rewrite(lambda said: said.update(generation=[])),
        "generation holds no object",
    ),
    "cut weights": (
        lambda f: os.truncate(f / "retro.safetensors", 5000),
        "is cut: 5000 bytes",
    ),
    "very deep": (_model(depth=10**6, encoder="own"), "lacks layers: the model has"),
    "no model": (_rewrite(lambda said: said.update(model=[])), "settings of a model"),
    "a missing setting": (
        _rewrite(lambda said: said["model"].pop("depth")),
        "does not have the settings",
    ),
    "a string": (_model(depth="2"), "model.depth can't be '2'"),
    "true": (_model(chunk_len=True), "model.chunk_len can't be True"),
    "layers of text": (_model(cca_layers=["2"]), "model.cca_layers can't be"),
    "a layer that is not there": (_model(cca_layers=[3]), "must lie in 1..2"),
    "another decoder": (_model(width=64), "another decoder: width is 64 and not 32"),
    "fewer CCA": (_model(cca_layers=[1, 2]), "lack decoder/1/"),
    "other tensors": (
        lambda f: write_weights(f / "retro.safetensors", {"x": np.ones(3)}),
        "lack decoder/2/cross",
    ),
    "NaN": (
        lambda f: write_weights(
            f / "retro.safetensors",
            {
                name: np.full(stored.shape, np.nan)
                for name, stored in exporting.safetensors_file.stored_in(
                    f / "retro.safetensors"
                ).items()
            },
        ),
        "not finite",
    ),
}


@pytest.mark.parametrize("case", _BAD)
def test_a_bad_export_is_told_in_one_line(case, tmp_path):
    source = write_folder(tmp_path / "source", CONFIGS["llama"])
    model, params = _retro(source)
    exporting.export(tmp_path / "out", model, params, source=source)
    damage, said = _BAD[case]
    damage(tmp_path / "out")
    with pytest.raises(ValueError) as error:
        exporting.load_retro(tmp_path / "out")
    assert said in str(error.value) and "\n" not in str(error.value)
