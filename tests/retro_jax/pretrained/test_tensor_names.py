"""The table of names: it has what the model has, in the model's shapes."""

import pytest

from retro_jax.model import parameters
from retro_jax.pretrained import huggingface_folder
from retro_jax.pretrained.tensor_names import places
from tests.retro_jax.pretrained.tiny_decoders import CONFIGS, write_folder


@pytest.mark.parametrize("name", CONFIGS)
def test_places_are_those_of_the_models_parameters(name, tmp_path):
    write_folder(tmp_path, CONFIGS[name])
    description = huggingface_folder.describe(tmp_path)
    found = places(description.model, description.vocab_rows)
    expected = parameters.named(parameters.skeleton(description.model))
    assert {place.ours: place.shape for place in found} == {
        name: leaf.shape for name, leaf in expected.items()
    }
    for names in ("huggingface", "gguf"):
        assert len({getattr(place, names) for place in found}) == len(found)


def test_matrices_of_files_have_outputs_first(tmp_path):
    write_folder(tmp_path, CONFIGS["llama"] | {"head_dim": 6})
    found = {p.ours: p for p in places(huggingface_folder.describe(tmp_path).model, 96)}
    for ours, stored_shape, is_transposed in (
        ("embedding_VD", (96, 32), False),
        ("decoder/1/attention/w_q_DHK", (24, 32), True),
        ("decoder/1/attention/w_k_EHK", (12, 32), True),
        ("decoder/1/attention/w_o_HKD", (32, 24), True),
        ("decoder/2/ffw/w_out_FD", (32, 48), True),
        ("norm/scale_D", (32,), False),
    ):
        assert found[ours].stored_shape == stored_shape
        assert found[ours].is_transposed == is_transposed
