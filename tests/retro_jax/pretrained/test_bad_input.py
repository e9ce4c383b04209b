"""Folders and files that are damaged, hostile or of another kind: one line each, that says so."""

import json
import os
import struct

import numpy as np
import pytest

from retro_jax.pretrained import loading
from tests.retro_jax.pretrained.tiny_decoders import (
    CONFIGS,
    weights_of,
    write_folder,
    write_gguf,
    write_weights,
)

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_INDEX = "model.safetensors.index.json"
_UP = "model.layers.0.mlp.up_proj.weight"


def _config(name="llama", without=(), **changes):
    """A folder whose config.json says something else."""

    def damage(folder):
        config = CONFIGS[name] | changes
        for key in without:
            del config[key]
        (folder / _CONFIG).write_text(json.dumps(config))

    return damage


def _text(name, text):
    return lambda folder: (folder / name).write_bytes(text)


def _header(change):
    """A folder whose weights have another header over the same bytes."""

    def damage(folder):
        content = (folder / _WEIGHTS).read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        (folder / _WEIGHTS).write_bytes(
            struct.pack("<Q", len(text)) + text + content[8 + length :]
        )

    return damage


def _entry(**changes):
    return _header(lambda header: header[_UP].update(changes))


def _tensors(change):
    """A folder of other tensors."""

    def damage(folder):
        weights = weights_of(folder)
        change(weights)
        write_weights(folder / _WEIGHTS, weights)

    return damage


def _bytes(change):
    def damage(folder):
        path = folder / _WEIGHTS
        path.write_bytes(change(path.read_bytes()))

    return damage


def _index(weight_map, name="shard.safetensors"):
    """A folder of one shard, and an index that says something of it."""

    def damage(folder):
        os.rename(folder / _WEIGHTS, folder / name)
        names = dict.fromkeys(weights_of(folder), name)
        index = {
            "weight_map": weight_map(names) if callable(weight_map) else weight_map
        }
        (folder / _INDEX).write_text(json.dumps(index))

    return damage


def _only(name):
    def damage(folder):
        (folder / _WEIGHTS).rename(folder / name)

    return damage


def _link_outside(folder):
    (folder / _WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / _WEIGHTS).symlink_to(folder.parent / "elsewhere")


def _adapter(folder):
    (folder / _CONFIG).rename(folder / "adapter_config.json")


def _empty(folder):
    for path in folder.iterdir():
        path.unlink()


def _set(name, index, value):
    return _tensors(lambda w: w[name].__setitem__(index, value))


_ROPE = {"rope_type": "yarn", "factor": 2.0}
_FOLDERS = {
    "no config": (_empty, "has no config.json"),
    "config is no JSON": (_text(_CONFIG, b"{"), "is no JSON"),
    "config is no text": (_text(_CONFIG, b"\xff\xfe"), "is no JSON"),
    "config is a list": (_text(_CONFIG, b"[1]"), "holds no object"),
    "config is deep": (_text(_CONFIG, b"[" * 10**5), "is no JSON"),
    "config is huge": (_text(_CONFIG, b" " * 2**21), "larger than"),
    "a number of 5000 digits": (
        _text(_CONFIG, b'{"a": ' + b"9" * 5000 + b"}"),
        "no JSON",
    ),
    "a string for a number": (_config(hidden_size="32"), "hidden_size must be a whole"),
    "a negative size": (_config(num_hidden_layers=-1), "num_hidden_layers must be"),
    "an absurd depth": (_config(num_hidden_layers=10**9), "num_hidden_layers must be"),
    "an absurd width": (_config(hidden_size=10**12), "hidden_size must be"),
    "true for a number": (_config(intermediate_size=True), "intermediate_size must be"),
    "a missing size": (
        _config(without=["intermediate_size"]),
        "intermediate_size is miss",
    ),
    "epsilon is not finite": (
        _config(rms_norm_eps=float("nan")),
        "rms_norm_eps must be",
    ),
    "epsilon is a string": (
        _config(rms_norm_eps="1e-5"),
        "rms_norm_eps must be a number",
    ),
    "a flag is a string": (_config(tie_word_embeddings="no"), "true or false"),
    "a token that is not there": (_config(bos_token_id=96), "bos_token_id must be ids"),
    "heads do not divide": (
        _config(num_attention_heads=5, head_dim=8),
        "5 heads are not",
    ),
    "width does not divide": (
        _config(num_attention_heads=6),
        "a multiple of the 6 heads",
    ),
    "an odd head": (_config(head_dim=7), "head_size must be even"),
    "another architecture": (
        _config(architectures=["GPT2LMHeadModel"]),
        "architectures",
    ),
    "no architecture": (_config(without=["architectures"]), "architectures is missing"),
    "experts": (_config(architectures=["MixtralForCausalLM"]), "MixtralForCausalLM"),
    "another activation": (_config(hidden_act="gelu"), "hidden_act must be 'silu'"),
    "attention biases": (_config(attention_bias=True), "attention_bias must be False"),
    "biases of feed-forwards": (_config(mlp_bias=True), "mlp_bias must be False"),
    "partial rotary": (
        _config(partial_rotary_factor=0.5),
        "partial_rotary_factor must",
    ),
    "yarn": (_config(rope_scaling=_ROPE), "rope_scaling: rope_type must be default or"),
    "yarn, new": (_config(rope_parameters=_ROPE), "rope_parameters: rope_type must be"),
    "rope by layer": (
        _config(rope_parameters={"full_attention": _ROPE}),
        "differs between",
    ),
    "rope is a list": (_config(rope_scaling=[1]), "rope_scaling must be an object"),
    "llama3 without factor": (
        _config(rope_scaling={"type": "llama3"}),
        "factor is missing",
    ),
    "mixed windows": (
        _config("qwen2", layer_types=["full_attention", "sliding_attention"]),
        "layer_types must be the same",
    ),
    "mixed windows, old": (
        _config("qwen2", use_sliding_window=True, max_window_layers=1),
        "max_window_layers must be 0",
    ),
    "quantised": (_config(quantization_config={"bits": 4}), "quantization_config"),
    "vocabulary above the embedding": (
        _config(vocab_size=128),
        "settings say (128, 32)",
    ),
    "another width": (_config(hidden_size=64, head_dim=8), "has shape (96, 32)"),
    "an adapter": (_adapter, "holds an adapter"),
    "an adapter's weights": (_only("adapter_model.safetensors"), "has no weights"),
    "pickled weights": (_only("pytorch_model.bin"), "never loaded"),
    "weights in .pth": (_only("consolidated.00.pth"), "never loaded"),
    "empty weights": (_bytes(lambda b: b""), "no file of safetensors, or cut"),
    "weights cut in the header": (_bytes(lambda b: b[:100]), "or cut"),
    "weights cut": (_bytes(lambda b: b[:-10]), "is cut"),
    "weights with more": (_bytes(lambda b: b + b"12"), "has bytes of no tensor"),
    "an absurd header": (_bytes(lambda b: b"\xff" * 8 + b[8:]), "its header claims"),
    "a header that is no JSON": (_bytes(lambda b: b[:9] + b"x" + b[10:]), "no JSON"),
    "offsets that overlap": (_entry(data_offsets=[0, 6144]), "overlaps"),
    "offsets past the end": (
        _entry(data_offsets=[10**9, 10**9 + 6144]),
        "leaves a gap",
    ),
    "negative offsets": (
        _entry(data_offsets=[-6144, 0]),
        "no proper shape and offsets",
    ),
    "a shape of strings": (_entry(shape=["48", 32]), "no proper shape and offsets"),
    "a shape of other size": (_entry(shape=[48, 33]), "has 6144 bytes"),
    "an absurd shape": (_entry(shape=[2**62, 2**62]), "no proper shape and offsets"),
    "a transposed matrix": (_entry(shape=[32, 48]), "has shape (32, 48)"),
    "eight bits": (_entry(dtype="F8_E4M3"), "of dtype 'F8_E4M3'"),
    "a dtype that is a list": (_entry(dtype=[]), "which is not read"),
    "an entry that is a list": (
        _header(lambda h: h.update({_UP: [1]})),
        "no proper shape",
    ),
    "a missing tensor": (_tensors(lambda w: w.pop(_UP)), f"lacks tensor {_UP}"),
    "a tensor too many": (
        _tensors(lambda w: w.update({"model.layers.0.mlp.experts": w[_UP]})),
        "has a tensor model.layers.0.mlp.experts",
    ),
    "untied without a read-out": (
        _tensors(lambda w: w.pop("lm_head.weight")),
        "lacks tensor lm_head",
    ),
    "tied with another read-out": (
        _config(tie_word_embeddings=True),
        "and yet lm_head",
    ),
    "NaN": (
        _set(_UP, (3, 4), np.nan),
        f"tensor {_UP}: has numbers that are not finite",
    ),
    "infinity": (
        _set("model.norm.weight", 3, -np.inf),
        "norm.weight: has numbers that",
    ),
    "a link outside": (_link_outside, "leads out of"),
    "an index without a map": (_index([]), "has no weight_map"),
    "an index of a path": (_index({"a": "../x.safetensors"}), "leads out of"),
    "an index of an absolute path": (
        _index({"a": "/etc/x.safetensors"}),
        "leads out of",
    ),
    "an index of a pickle": (_index({"a": "x.bin"}), "is no file of safetensors"),
    "a missing shard": (
        _index(lambda m: m | {"a": "b.safetensors"}),
        "lacks b.safetensors",
    ),
    "a shard without its tensor": (
        _index(lambda m: m | {"a": "shard.safetensors"}),
        "lacks a, which",
    ),
    "a shard with more": (
        _index(lambda m: {name: file for name, file in m.items() if name != _UP}),
        "does not say",
    ),
}


@pytest.mark.parametrize("case", _FOLDERS)
def test_a_bad_folder_is_told_in_one_line(case, tmp_path):
    damage, said = _FOLDERS[case]
    name = "qwen2" if case.startswith("mixed") else "llama"
    folder = write_folder(tmp_path / "model", CONFIGS[name])
    damage(folder)
    with pytest.raises(ValueError) as error:
        loading.load(folder)
    assert said in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def _cut(count):
    return lambda path: path.write_bytes(path.read_bytes()[:count])


def _patched(old, new):
    def damage(path):
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))

    return damage


def _again(quantisation="F32", **metadata):
    def damage(path):
        write_gguf(path, path.parent / "hf", quantisation, **metadata)

    return damage


def _number(value):
    return struct.pack("<Q", value)


_NAME = b"token_embd.weight"
_AXES = struct.pack("<I", 2) + _number(32) + _number(96)
_FILES = {
    "no GGUF": (lambda path: path.write_bytes(b"GGML" * 9), "is no GGUF file"),
    "empty": (_cut(0), "is no GGUF file"),
    "cut in its header": (_cut(500), "its header runs over its end"),
    "cut": (_cut(-100), "is cut"),
    "version 1": (_patched(b"GGUF\x03", b"GGUF\x01"), "version 1"),
    "absurdly many tensors": (
        _patched(b"GGUF\x03\0\0\0", b"GGUF\x03\0\0\0" + b"\xff" * 8),
        "tensors",
    ),
    "an absurd string": (
        _patched(_number(20) + b"general.architecture", b"\xff" * 28),
        "its header runs over its end",
    ),
    "an absurd shape": (
        _patched(_NAME + _AXES, _NAME + _AXES[:4] + b"\x7f" * 16),
        "cut",
    ),
    "nine axes": (_patched(_NAME + b"\x02", _NAME + b"\x09"), "has 9 axes"),
    "an unknown quantisation": (
        _patched(_NAME + _AXES + b"\0", _NAME + _AXES + b"\x63"),
        "is of type 99, which is not read",
    ),
    "a quantisation that is not read": (
        _patched(_NAME + _AXES + b"\0", _NAME + _AXES + b"\x0f"),  # Q8_K
        "is of type 15, which is not read",
    ),
    "another family": (
        _patched(b"\x05\0\0\0\0\0\0\0llama", _number(5) + b"gemma"),
        "gemma",
    ),
    "experts": (_again(llama__expert_count=8), "expert_count must be 0"),
    "a stretch of positions": (
        _again(llama__rope__scaling__type="linear"),
        "rope.scaling.type must be 'none'",
    ),
    "partial rotary": (_again(llama__rope__dimension_count=4), "a head's size, 8"),
    "one part of several": (_again(split__count=3), "split.count must be 1"),
    "vocabulary above the embedding": (
        _again(tokenizer__ggml__tokens=["a"] * 97),
        "the vocabulary has 97 tokens, the embedding 96",
    ),
    "another vocabulary": (_again(llama__vocab_size=97), "the 96 rows"),
    "heads by layer": (_again(llama__attention__head_count=[4, 4]), "an array of 2"),
    "a token that is not there": (
        _again(tokenizer__ggml__bos_token_id=500),
        "bos_token_id must be ids",
    ),
    "an odd alignment": (_again(general__alignment=0), "alignment must be"),
}


@pytest.mark.parametrize("case", _FILES)
def test_a_bad_gguf_file_is_told_in_one_line(case, tmp_path):
    damage, said = _FILES[case]
    folder = write_folder(tmp_path / "hf", CONFIGS["llama"])
    path = write_gguf(tmp_path / "model.gguf", folder)
    damage(path)
    with pytest.raises(ValueError) as error:
        loading.load(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("name", ["w.bin", "w.pt", "w.pth", "w.ckpt", "w.safetensors"])
def test_a_file_of_weights_alone_is_refused_unopened(name, tmp_path):
    (tmp_path / name).write_bytes(b"GGUF" * 100)
    for read in (loading.load, loading.config_of, loading.fingerprint_of):
        with pytest.raises(ValueError, match="never loaded|weights alone"):
            read(tmp_path / name)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no .*nowhere"):
        loading.load(tmp_path / "nowhere")


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "rev"
    write_folder(blobs, CONFIGS["llama"])
    snapshot.mkdir(parents=True)
    for name in (_CONFIG, _WEIGHTS):
        (snapshot / name).symlink_to(blobs / name)
    assert loading.fingerprint_of(snapshot) == loading.fingerprint_of(blobs)


def test_nothing_is_read_past_a_header_of_random_bytes(tmp_path):
    """Any byte of a header changed: read as something, or refused in one line."""
    folder = write_folder(tmp_path / "hf", CONFIGS["llama"])
    content = bytearray((folder / _WEIGHTS).read_bytes())
    bits = np.random.PCG64(0).random_raw(300)
    for place, value in zip(bits[::2] % 3000, bits[1::2] % 256, strict=True):
        changed = bytearray(content)
        changed[place] = value
        (folder / _WEIGHTS).write_bytes(changed)
        try:
            loading.find(folder)
        except ValueError as error:
            assert "\n" not in str(error)
