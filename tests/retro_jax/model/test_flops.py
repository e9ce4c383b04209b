"""The FLOPs that we count, against those that XLA counts in the model as it is written."""

import functools

import jax
import numpy as np
import pytest

from retro_jax.config import ModelConfig, paper_config
from retro_jax.model import attention, flops, parameters
from retro_jax.training import retrofit

_LEN = 256


def _config(**changes) -> ModelConfig:
    """Wide enough for matrix products to be nearly all of the work."""
    settings = {
        "vocab_size": 2048,
        "depth": 3,
        "width": 512,
        "num_heads": 4,
        "head_size": 128,
        "ffw_width": 2048,
        "cca_layers": (2, 3),
        "encoder_depth": 2,
        "encoder_width": 384,
        "encoder_heads": 4,
        "encoder_head_size": 96,
        "encoder_ffw_width": 1536,
        "dtype": "float32",
    }
    return ModelConfig(**(settings | changes))


def _counted_by_xla(
    cfg: ModelConfig, num_neighbours: int, *, retrieval: bool, wrap=lambda model: model
) -> float:
    """FLOPs that one more sequence in the batch costs, in the program before XLA's passes."""
    params = {
        name: jax.ShapeDtypeStruct(leaf.shape, np.float32)
        for name, leaf in parameters.named(parameters.skeleton(cfg)).items()
    }
    num_chunks = _LEN // cfg.chunk_len

    @functools.cache
    def count(batch_size: int) -> float:
        inputs = jax.ShapeDtypeStruct((batch_size, _LEN), np.int32)
        shape = (batch_size, num_chunks, num_neighbours, cfg.neighbour_len)
        neighbours = jax.ShapeDtypeStruct(shape, np.int32) if retrieval else None
        model = wrap(lambda p, *given: parameters.rebuild(cfg, p)(*given))
        lowered = jax.jit(model).lower(params, inputs, neighbours)
        return lowered.cost_analysis()["flops"]

    return count(3) - count(2)


@pytest.mark.parametrize(
    ("changes", "num_neighbours", "retrieval"),
    [
        ({}, 2, True),
        ({}, 2, False),
        ({}, 3, True),
        ({"depth": 6, "cca_layers": (6,), "encoder_depth": 1}, 2, True),
        ({"cca_layers": (1, 2, 3), "encoder_cca_layers": (1, 2)}, 2, True),
        ({"vocab_size": 16_384, "ffw_width": 1024}, 1, True),
        ({"chunk_len": 32, "neighbour_len": 64}, 2, True),
        ({"positions": "rotary", "gated_ffw": True, "num_key_heads": 1}, 2, True),
        ({"cca_positions": False, "neighbour_part": "match"}, 2, True),
        (
            {"positions": "rotary", "gated_ffw": True, "num_key_heads": 1}
            | {"encoder": "decoder", "bos_id": 0},
            2,
            True,
        ),
    ],
)
def test_flops_are_those_that_xla_counts(
    changes, num_neighbours, retrieval, monkeypatch
):
    # As is usual, ours count what causality hides too, which blocks leave out.
    monkeypatch.setattr(attention, "_MIN_BLOCK", _LEN)
    cfg = _config(**changes)
    ours = flops.forward_flops(cfg, _LEN, num_neighbours, retrieval=retrieval)
    xla = _counted_by_xla(cfg, num_neighbours, retrieval=retrieval)
    # XLA also counts element-wise work.
    assert 0.95 < ours / xla <= 1.0, ours / xla


def test_without_neighbours_a_retro_costs_as_much_as_its_baseline():
    baseline = _config(cca_layers=())
    count = functools.partial(flops.forward_flops, sequence_len=_LEN)
    alone = count(baseline, num_neighbours=2, retrieval=True)
    assert count(_config(), num_neighbours=2, retrieval=False) == alone
    assert count(_config(), num_neighbours=0, retrieval=True) == alone
    assert count(_config(), num_neighbours=2, retrieval=True) > alone


def test_training_costs_three_forward_passes():
    cfg = _config()
    forward = flops.forward_flops(cfg, _LEN, 2, retrieval=True)
    assert flops.train_flops(cfg, _LEN, 2, retrieval=True) == 3 * forward


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "rotary", "encoder": "decoder", "bos_id": 0},
        {"positions": "rotary", "cca_layers": (2,)},
    ],
)
def test_a_frozen_backbone_has_half_a_backward_pass_above_its_first_cca(
    changes, monkeypatch
):
    monkeypatch.setattr(attention, "_MIN_BLOCK", _LEN)
    cfg = _config(**changes, remat="none")
    names = retrofit.new_names(cfg)

    def grow(model, trained, kept, *given):
        def loss(some):
            return model({**kept, **some}, *given).sum()

        return jax.value_and_grad(loss)(trained)

    def wrap(model):
        def step(params, *given):
            trained = {name: params[name] for name in names}
            kept = {name: one for name, one in params.items() if name not in names}
            return grow(model, trained, kept, *given)

        return step

    ours = flops.train_flops(cfg, _LEN, 2, retrieval=True, frozen=True)
    xla = _counted_by_xla(cfg, 2, retrieval=True, wrap=wrap)
    # XLA also counts element-wise work, of which a backward pass has more.
    assert 0.9 < ours / xla <= 1.0, ours / xla
    assert ours < flops.train_flops(cfg, _LEN, 2, retrieval=True)


def test_attention_is_what_grows_with_the_square_of_the_length():
    cfg = _config(cca_layers=())
    once, twice, four_times = (
        flops.forward_flops(cfg, n * _LEN, 0, retrieval=False) for n in (1, 2, 4)
    )
    square = (four_times - 2 * twice) // 8  # what is linear cancels
    assert flops.attention_flops(cfg, _LEN) == square > 0
    assert twice == 2 * (once - square) + 4 * square


def test_an_incomplete_chunk_reads_nothing():
    cfg = _config()

    def reading(sequence_len: int) -> int:
        on, off = (
            flops.forward_flops(cfg, sequence_len, 2, retrieval=retrieval)
            for retrieval in (True, False)
        )
        return on - off

    assert reading(cfg.chunk_len - 1) == 0
    assert reading(2 * cfg.chunk_len) == reading(3 * cfg.chunk_len - 1) > 0


def test_the_largest_model_costs_six_flops_a_parameter_and_token_and_its_attention():
    cfg = paper_config("7.5b")
    table = cfg.depth * cfg.width * cfg.num_heads * cfg.head_size  # of positions
    weights = 6_979_321_856 - table + cfg.vocab_size * cfg.width
    attention = 3 * 3 * 2 * cfg.depth * 2048**2 * cfg.num_heads * cfg.head_size
    assert flops.train_flops(cfg, 2048, 2, retrieval=False) == pytest.approx(
        6 * weights * 2048 + attention, rel=1e-3
    )


def test_a_prompt_costs_its_tokens_in_every_layer_and_cca_in_its_own():
    cfg = _config(positions="rotary", num_key_heads=2, encoder="decoder")
    alone = flops.forward_flops(cfg, _LEN, 0, retrieval=False)
    both = flops.forward_flops(cfg, _LEN, 2, retrieval=True)
    chunks = _LEN // cfg.chunk_len
    assert both - alone == chunks * flops.reading_flops(cfg, 2, kept=False)
    kept = flops.reading_flops(cfg, 2, kept=True)
    encoded = flops.reading_flops(cfg, 2, kept=False) - kept
    # Two of three layers read below the last one with CCA, and all three in a prompt: more
    # than three halves, for passages there look at each other and the chunk at them.
    assert 1.5 * encoded < flops.prompt_flops(cfg, 2) < 2 * encoded
    # A text behind two passages, less the text.
    longer = _LEN + 2 * cfg.neighbour_len
    behind = flops.forward_flops(cfg, longer, 0, retrieval=False)
    read_out = 2 * (longer - _LEN) * cfg.width * cfg.vocab_size
    once = behind - alone - read_out
    # There all tokens of the text look at the passages and the passages at all of them.
    looks = cfg.depth * 4 * cfg.num_heads * cfg.head_size * 2 * cfg.neighbour_len
    more = looks * (2 * _LEN - cfg.chunk_len)
    assert flops.prompt_flops(cfg, 2) == once - more
