"""Every form of attention computes the same, and every kind of position what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from retro_jax.devices import sharding
from retro_jax.model import attention as attention_lib
from retro_jax.model import kernels
from retro_jax.model.attention import Attention
from tests import tiny_model

LENGTH, WIDTH, HEADS, SIZE = 128, 16, 2, 8


def make(seed: int = 0, **options) -> Attention:
    """An attention whose biases are not zero."""
    made = Attention(
        WIDTH, WIDTH, HEADS, SIZE, rngs=nnx.Rngs(seed), out_gain=1.0, **options
    )
    rng = np.random.default_rng(seed)
    for bias in (made.bias_content_HK, made.bias_position_HK):
        if bias is not None:
            bias.set_value(jnp.asarray(rng.standard_normal((HEADS, SIZE)), jnp.float32))
    return made


def inputs(num_sequences: int = 2) -> tuple[jax.Array, jax.Array]:
    """Activations, and segments: two documents and padding, another cut in each row."""
    rng = np.random.default_rng(1)
    x_BLD = rng.standard_normal((num_sequences, LENGTH, WIDTH)).astype(np.float32)
    segments_BL = np.ones((num_sequences, LENGTH), np.int32)
    for row, segments_L in enumerate(segments_BL):
        segments_L[40 + 13 * row :] = 2
        segments_L[100 + row :] = 0
    return jnp.asarray(x_BLD), jnp.asarray(segments_BL)


@pytest.mark.parametrize("num_blocks", [1, 4])
@pytest.mark.parametrize(
    "options",
    [{"positions": "relative", "num_key_heads": 1}, {"positions": "rotary"}],
    ids=["relative", "rotary"],
)
def test_blocks_of_queries_give_what_all_at_once_do(options, num_blocks, monkeypatch):
    monkeypatch.setattr(attention_lib, "_BLOCKS", num_blocks)
    monkeypatch.setattr(attention_lib, "_MIN_BLOCK", LENGTH // num_blocks)
    x_BLD, segments_BL = inputs()
    attention = make(**options)

    def in_blocks(attention, x_BLD):
        return attention.over_itself(x_BLD, segments_BL, "einsum")

    def at_once(attention, x_BLD):
        return attention(x_BLD, x_BLD[:, None], kernels.causal_mask(segments_BL))

    def graded(read):
        weights_BLD = jnp.cos(jnp.arange(x_BLD.size)).reshape(x_BLD.shape)
        loss = jax.grad(lambda *args: jnp.sum(read(*args) * weights_BLD), (0, 1))
        return jax.jit(loss)(attention, x_BLD)

    text = str(jax.make_jaxpr(in_blocks)(attention, x_BLD))
    assert f"f32[2,{HEADS},{LENGTH // num_blocks},1,{LENGTH}]" in text  # the last block
    assert (f"f32[2,{HEADS},{LENGTH},1,{LENGTH}]" in text) == (num_blocks == 1)
    np.testing.assert_allclose(
        in_blocks(attention, x_BLD), at_once(attention, x_BLD), atol=2e-6
    )
    for one, other in zip(
        jax.tree.leaves(graded(in_blocks)),
        jax.tree.leaves(graded(at_once)),
        strict=True,
    ):
        np.testing.assert_allclose(
            one, other, atol=3e-6 * float(jnp.abs(one).max() + 1)
        )


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
    x_BLD, segments_BL = inputs()
    attention = make(**options)
    weights_BLD = jnp.cos(jnp.arange(x_BLD.size, dtype=jnp.float32)).reshape(
        x_BLD.shape
    )

    def loss(attention, x_BLD, form):
        read_BLD = attention.over_itself(x_BLD, segments_BL, form)
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
    x_BLD, segments_BL = inputs()
    attention = make(positions="rotary")
    whole_BLD = attention.over_itself(x_BLD, segments_BL, "einsum")
    with jax.set_mesh(tiny_model.mesh(2, 2)):
        split = jax.jit(lambda x, s: attention.over_itself(x, s, "splash"))
        split_BLD = split(x_BLD, segments_BL)
    np.testing.assert_allclose(whole_BLD, split_BLD, atol=2e-5)


def test_splash_refuses_a_length_it_cannot_cut():
    x_BLD, segments_BL = inputs()
    with pytest.raises(ValueError, match="multiple of 128 tokens, have 100"):
        make().over_itself(x_BLD[:, :100], segments_BL[:, :100], "splash")


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
    assert kernels.choose("auto", num_features, length) == chosen
    assert kernels.choose("features", num_features, length) == "features"


def rotated(x_K: np.ndarray, place: float) -> np.ndarray:
    """As complex numbers, which the code does not use."""
    half = len(x_K) // 2
    turns = np.exp(1j * place * 10_000.0 ** -(np.arange(half) / half))
    turned = (x_K[:half] + 1j * x_K[half:]) * turns
    return np.concatenate([turned.real, turned.imag])


@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("num_key_heads", [1, 2])
def test_rotary_groups_equal_the_loop(offset, num_key_heads):
    attention = make(positions="rotary", num_key_heads=num_key_heads)
    rng = np.random.default_rng(2)
    query_BLD = rng.standard_normal((1, 3, WIDTH))
    source_BNSE = rng.standard_normal((1, 2, 4, WIDTH))
    mask_BLNS = rng.random((1, 3, 2, 4)) < 0.7
    mask_BLNS[0, 1] = False
    found = attention(
        jnp.asarray(query_BLD, jnp.float32),
        jnp.asarray(source_BNSE, jnp.float32),
        jnp.asarray(mask_BLNS),
        distance_offset=offset,
    )
    weights = [
        np.asarray(w[...], np.float64)
        for w in (
            attention.w_q_DHK,
            attention.w_k_EHK,
            attention.w_v_EHK,
            attention.w_o_HKD,
        )
    ]
    for place in range(3):
        expected_D = _one_query(
            weights,
            query_BLD[0, place],
            place + offset,
            source_BNSE[0],
            mask_BLNS[0, place],
        )
        np.testing.assert_allclose(found[0, place], expected_D, atol=1e-5)


def _one_query(weights, query_D, place, source_NSE, mask_NS):
    w_q, w_k, w_v, w_o = weights
    update_D = np.zeros(WIDTH)
    for head in range(HEADS):
        key_head = head * w_k.shape[1] // HEADS
        query_K = rotated(query_D @ w_q[:, head], place)
        seen = [(n, s) for n, s in np.ndindex(*mask_NS.shape) if mask_NS[n, s]]
        if not seen:
            continue
        keys = [rotated(source_NSE[n, s] @ w_k[:, key_head], s) for n, s in seen]
        shares = np.exp(np.array(keys) @ query_K / np.sqrt(SIZE))
        values = np.array([source_NSE[n, s] @ w_v[:, key_head] for n, s in seen])
        update_D += (shares / shares.sum()) @ values @ w_o[head]
    return update_D


def test_without_positions_the_order_of_keys_does_not_matter():
    rng = np.random.default_rng(3)
    query_BLD = jnp.asarray(rng.standard_normal((1, 3, WIDTH)), jnp.float32)
    source_BNSE = jnp.asarray(rng.standard_normal((1, 1, 4, WIDTH)), jnp.float32)
    order = np.array([2, 0, 3, 1])
    mask_BLNS = jnp.ones((1, 3, 1, 4), bool)
    for positions, same in (("none", True), ("relative", False), ("rotary", False)):
        attention = make(positions=positions)
        one = attention(query_BLD, source_BNSE, mask_BLNS)
        other = attention(query_BLD, source_BNSE[:, :, order], mask_BLNS)
        assert np.allclose(one, other, atol=1e-5) == same


def test_a_row_of_keys_may_serve_several_rows_of_queries():
    rng = np.random.default_rng(4)
    query_BLD = jnp.asarray(rng.standard_normal((4, 3, WIDTH)), jnp.float32)
    source_BNSE = jnp.asarray(rng.standard_normal((2, 1, 4, WIDTH)), jnp.float32)
    mask_BLNS = jnp.ones((4, 3, 1, 4), bool)
    attention = make()
    shared = attention(query_BLD, source_BNSE, mask_BLNS)
    repeated = attention(query_BLD, jnp.repeat(source_BNSE, 2, axis=0), mask_BLNS)
    np.testing.assert_allclose(shared, repeated, atol=1e-6)
