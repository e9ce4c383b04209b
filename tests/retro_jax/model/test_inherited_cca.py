"""What CCA inherits; what it then does is in `test_decoder_reader.py`."""

import numpy as np

from retro_jax.config import RetrofitConfig
from retro_jax.model import parameters
from tests import tiny_decoder


def test_cca_starts_as_its_layers_self_attention():
    params = tiny_decoder.whole()
    for layer in tiny_decoder.CCA_LAYERS:
        for name in ("w_q_DHK", "w_k_EHK", "w_v_EHK", "w_o_HKD"):
            np.testing.assert_array_equal(
                params[f"decoder/{layer}/cross/{name}"],
                params[f"decoder/{layer}/attention/{name}"],
            )
    np.testing.assert_array_equal(params["decoder/2/cross/gate_H"], [1, 1, 1, 1])
    np.testing.assert_array_equal(params["decoder/4/cross/gate_H"], [0, 1, 1, 0])


def test_biases_and_norms_of_heads_are_inherited_too():
    kinds = {"qkv_biases": True, "qk_norms": True}
    params = tiny_decoder.whole(**kinds)
    expected = parameters.named(parameters.skeleton(tiny_decoder.config(**kinds)))
    assert params.keys() == expected.keys()
    for name in ("bias_k_HK", "norm_q/scale_D"):
        assert f"decoder/4/cross/{name}" in params


def test_random_starts_differ_by_their_seed_and_have_an_output_of_zero():
    params = tiny_decoder.whole(RetrofitConfig(start="random"))
    name = "decoder/2/cross/w_q_DHK"
    assert not np.array_equal(params[name], tiny_decoder.whole()[name])
    assert not np.any(params["decoder/2/cross/w_o_HKD"])
    np.testing.assert_array_equal(params["decoder/4/cross/gate_H"], np.ones(4))
