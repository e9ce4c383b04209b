"""The settings that turn the paper's model into its ablations and a modern decoder."""

import dataclasses

import jax
import numpy as np
import pytest

from retro_jax import config as configs
from retro_jax.model import parameters
from retro_jax.training.step import loss
from tests import tiny_model

M = 4  # tokens of a chunk; neighbours are 2 M long


def logits(cfg, params, batch, **changed):
    given = {**batch, **changed}
    return tiny_model.forward(cfg)(
        params,
        given["inputs_BL"],
        given["neighbours_BCNR"],
        given["neighbour_lengths_BCN"],
        given["segments_BL"],
    )


def gradients_of(cfg, params, batch):
    @jax.jit
    def gradients(params, batch):
        return jax.grad(lambda p: loss(p, {}, cfg, batch)[0])(params)

    return gradients(params, batch)


@pytest.fixture
def batch():
    return tiny_model.batch(tiny_model.small_config())


def test_match_alone_is_a_model_that_is_given_matches_alone(batch):
    cfg = tiny_model.small_config(neighbour_part="match")
    params = tiny_model.parameters(cfg)
    cut = dataclasses.replace(cfg, neighbour_part="both", neighbour_len=M)
    np.testing.assert_array_equal(
        logits(cfg, params, batch),
        logits(
            cut,
            params,
            batch,
            neighbours_BCNR=batch["neighbours_BCNR"][..., :M],
            neighbour_lengths_BCN=np.minimum(batch["neighbour_lengths_BCN"], M),
        ),
    )


def test_continuation_alone_never_sees_the_match(batch):
    cfg = tiny_model.small_config(neighbour_part="continuation")
    params = tiny_model.parameters(cfg)
    whole = logits(cfg, params, batch)
    neighbours = batch["neighbours_BCNR"]
    other_match = neighbours.copy()
    other_match[..., :M] = (other_match[..., :M] + 1) % cfg.vocab_size
    np.testing.assert_array_equal(
        whole, logits(cfg, params, batch, neighbours_BCNR=other_match)
    )
    other_end = neighbours.copy()
    other_end[..., M:] = (other_end[..., M:] + 1) % cfg.vocab_size
    assert (whole != logits(cfg, params, batch, neighbours_BCNR=other_end)).any()
    only_match = np.minimum(batch["neighbour_lengths_BCN"], M)
    np.testing.assert_array_equal(
        logits(cfg, params, batch, neighbour_lengths_BCN=only_match),
        logits(cfg, params, batch, neighbour_lengths_BCN=0 * only_match),
    )


def test_a_continuation_stands_where_it_stood_in_the_neighbour(batch):
    """Only the distances to the queries tell it from a neighbour that starts there."""
    cfg = tiny_model.small_config(
        neighbour_part="continuation", encoder_cca_layers=(), encoder_depth=1
    )
    both = dataclasses.replace(cfg, neighbour_part="both")
    params = tiny_model.parameters(cfg)
    # One token in each neighbour, so all keys of a query are at one distance, which then
    # cancels: the place does not show.
    lengths = np.full_like(batch["neighbour_lengths_BCN"], M + 1)
    one = logits(cfg, params, batch, neighbour_lengths_BCN=lengths)
    moved = dataclasses.replace(both, neighbour_len=1)
    elsewhere = logits(
        moved,
        params,
        batch,
        neighbours_BCNR=batch["neighbours_BCNR"][..., M : M + 1],
        neighbour_lengths_BCN=np.ones_like(lengths),
    )
    np.testing.assert_allclose(one, elsewhere, atol=1e-5)
    # Keys at two distances, which differ by the place: now it must.
    uneven = lengths.copy()
    uneven[..., 0] += 1
    two = logits(cfg, params, batch, neighbour_lengths_BCN=uneven)
    moved = dataclasses.replace(both, neighbour_len=2)
    elsewhere = logits(
        moved,
        params,
        batch,
        neighbours_BCNR=batch["neighbours_BCNR"][..., M : M + 2],
        neighbour_lengths_BCN=uneven - M,
    )
    assert not np.allclose(two, elsewhere, atol=1e-5)


def test_the_encoder_can_be_left_unconditioned(batch):
    cfg = tiny_model.small_config(encoder_cca_layers=())
    names = tiny_model.shapes(cfg)
    assert not any(n.startswith("encoder") and "cross" in n for n in names)
    assert np.isfinite(logits(cfg, tiny_model.parameters(cfg), batch)).all()


def test_cross_attention_can_be_without_positions():
    cfg = tiny_model.small_config(cca_positions=False)
    names = tiny_model.shapes(cfg)
    assert not any("cross/w_r" in name for name in names)
    assert "decoder/1/attention/w_r_DHK" in names


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_modern_model_is_causal_and_trains(batch, remat):
    cfg = configs.modern(tiny_model.small_config(num_heads=4, remat=remat))
    assert cfg.num_key_heads == 1 and cfg.positions == "rotary" and cfg.gated_ffw
    cfg = dataclasses.replace(cfg, ffw_width=16, encoder_ffw_width=16)
    params = tiny_model.parameters(cfg)
    names = tiny_model.shapes(cfg)
    assert not any("w_r" in name or "bias" in name for name in names)
    assert names["decoder/1/attention/w_k_EHK"] == (cfg.width, 1, cfg.head_size)
    before = logits(cfg, params, batch)
    changed = batch["inputs_BL"].copy()
    changed[:, 7] = (changed[:, 7] + 1) % cfg.vocab_size
    after = logits(cfg, params, batch, inputs_BL=changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(axis=-1).all()
    gradients = gradients_of(cfg, params, batch)
    for name, gradient in gradients.items():
        assert np.abs(gradient).max() > 0, name


def test_the_modern_model_has_the_size_of_the_paper_s():
    for size in ("172m", "425m", "1.5b", "7.5b"):
        paper = configs.paper_config(size)
        sizes = [
            parameters.num_parameters(
                parameters.named(parameters.skeleton(cfg)), embeddings=False
            )
            for cfg in (paper, configs.modern(paper))
        ]
        assert 0.6 < sizes[1] / sizes[0] < 1.0  # no position matrices, fewer keys


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "absolute"}, "positions must be one of relative, rotary, none"),
        ({"neighbour_part": "start"}, "neighbour_part must be one of both, match"),
        ({"attention": "flash"}, "attention must be one of auto, einsum"),
        ({"num_key_heads": 3}, "num_heads 2 is not a multiple of .* 3"),
        ({"num_key_heads": 0}, "num_key_heads must be at least 1, is 0"),
        ({"position_width": 7}, "position_width must be even"),
        ({"head_size": 7}, "head_size must be even"),
        ({"neighbour_part": "continuation", "neighbour_len": 4}, "longer than a chunk"),
        (
            {
                "copy_init": True,
                "share_embeddings": True,
                "encoder_width": 16,
                "positions": "rotary",
            },
            "copy_init needs model.positions=relative",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.config(**changes).validate()
