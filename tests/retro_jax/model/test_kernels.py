"""Every form of causal attention computes what the plain one does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.devices import sharding
from retro_jax.model import kernels
from retro_jax.model.kernels import Causal
from tests import tiny_model


def test_a_query_sees_its_own_document_up_to_itself():
    segments_BL = jnp.array([[1, 1, 2, 2, 0]])
    expected_LL = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(Causal(segments_BL).mask_BLNS[0, :, 0], expected_LL)


@pytest.mark.parametrize("form", ["features", "splash"])
@pytest.mark.parametrize(
    "options",
    [
        {"positions": "relative"},
        {"positions": "relative", "position_width": 8, "num_key_heads": 1},
        {"positions": "rotary", "num_key_heads": 1},
        {"positions": "none"},
    ],
    ids=["relative", "narrow", "rotary", "none"],
)
def test_all_forms_agree_in_value_and_gradient(form, options):
    x_BLD, segments_BL = tiny_model.attention_inputs()
    attention = tiny_model.attention(**options)
    weights_BLD = jnp.cos(jnp.arange(x_BLD.size, dtype=jnp.float32)).reshape(
        x_BLD.shape
    )

    def loss(attention, x_BLD, form):
        read_BLD = attention(x_BLD, x_BLD[:, None], Causal(segments_BL, form))
        return jnp.sum(read_BLD * weights_BLD), read_BLD

    graded = jax.jit(
        jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnames="form"
    )
    plain, plain_BLD = graded(attention, x_BLD, form="einsum")
    other, other_BLD = graded(attention, x_BLD, form=form)
    np.testing.assert_allclose(plain_BLD, other_BLD, atol=2e-5)
    for one, another in zip(
        jax.tree.leaves(plain), jax.tree.leaves(other), strict=True
    ):
        scale = float(jnp.abs(one).max())
        np.testing.assert_allclose(one, another, atol=2e-5 * max(scale, 1.0))


def test_splash_is_split_over_a_mesh_by_sequences_and_heads():
    x_BLD, segments_BL = tiny_model.attention_inputs()
    attention = tiny_model.attention(positions="rotary")
    whole_BLD = attention(x_BLD, x_BLD[:, None], Causal(segments_BL, "einsum"))
    with jax.set_mesh(tiny_model.mesh(2, 2)):
        split = jax.jit(lambda x, s: attention(x, x[:, None], Causal(s, "splash")))
        split_BLD = split(x_BLD, segments_BL)
    np.testing.assert_allclose(whole_BLD, split_BLD, atol=2e-5)


def test_splash_refuses_a_length_it_cannot_cut():
    x_BLD, segments_BL = (x[:, :100] for x in tiny_model.attention_inputs())
    attention = tiny_model.attention()
    with pytest.raises(ValueError, match="multiple of 128 tokens, have 100"):
        attention(x_BLD, x_BLD[:, None], Causal(segments_BL, "splash"))


@pytest.mark.parametrize(
    ("platform", "num_features", "length", "chosen"),
    [
        ("cpu", 64, 2048, "einsum"),
        ("tpu", 256, 2048, "splash"),
        ("tpu", 256, 2000, "einsum"),
        ("tpu", 64 + 4096, 2048, "einsum"),
        ("gpu", 128, 2048, "cudnn"),
        ("gpu", 64 + 896, 2048, "einsum"),
    ],
)
def test_the_form_follows_the_device(
    monkeypatch, platform, num_features, length, chosen
):
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    segments_BL = jnp.ones((1, length), int)
    for form, expected in (("auto", chosen), ("features", "features")):
        causal = kernels.Causal(segments_BL, form)
        assert kernels.resolve_form(causal, num_features) == expected
