"""What config.json says, in old and new ways of saying it; bad ones: test_bad_input."""

import json

import pytest

from retro_jax.pretrained import huggingface_folder
from tests.retro_jax.pretrained.tiny_decoders import CONFIGS


def _model(folder, name, without=(), **changes):
    config = {k: v for k, v in (CONFIGS[name] | changes).items() if k not in without}
    (folder / "config.json").write_text(json.dumps(config))
    return huggingface_folder.describe(folder).model


@pytest.mark.parametrize(
    ("name", "changes", "window_len"),
    [
        ("llama", {"sliding_window": 4}, None),  # which transformers does not look at
        ("mistral", {}, 4),
        ("mistral", {"sliding_window": None}, None),
        ("mistral", {"layer_types": ["sliding_attention"] * 2}, 4),
        ("qwen2", {}, None),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, 4),
        ("qwen2", {"layer_types": ["full_attention"] * 2}, None),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2, "sliding_window": 8}, 8),
    ],
)
def test_windows(name, changes, window_len, tmp_path):
    assert _model(tmp_path, name, **changes).window_len == window_len


def test_what_transformers_takes_where_settings_are_silent(tmp_path):
    without = [
        "num_key_value_heads",
        "rope_theta",
        "rms_norm_eps",
        "tie_word_embeddings",
    ]
    model = _model(tmp_path, "llama", without)
    assert (model.num_key_heads, model.head_size) == (4, 8)
    assert (model.rotary_base, model.norm_epsilon) == (10_000, 1e-6)
    assert not model.tie_output
    model = _model(
        tmp_path, "mistral", [*without, "sliding_window"], num_attention_heads=16
    )
    assert (model.num_key_heads, model.window_len) == (8, 4096)
    assert _model(tmp_path, "qwen3", ["head_dim"]).head_size == 128
    # null is not silence
    assert _model(tmp_path, "mistral", num_key_value_heads=None).num_key_heads == 4


def test_both_ways_of_writing_positions_are_one(tmp_path):
    old, new = (_model(tmp_path, name) for name in ("llama3", "llama3-new"))
    assert old == new and old.rotary_base == 1000.0


def test_the_vocabulary_is_padded_as_our_own_are(tmp_path):
    assert _model(tmp_path, "llama", vocab_size=129, bos_token_id=128).vocab_size == 256
    assert _model(tmp_path, "llama", vocab_size=128).vocab_size == 128
