import dataclasses

import pytest

from retro_jax.config import ModelConfig, TrainConfig, paper_config
from tests import tiny_model


def test_the_paper_sizes_are_table_10s():
    cfg = paper_config("1.5b", vocab_size=1000)
    assert (cfg.vocab_size, cfg.depth, cfg.width, cfg.ffw_width) == (
        1000,
        24,
        2048,
        8192,
    )
    assert (cfg.num_heads, cfg.head_size, cfg.chunk_len) == (16, 128, 64)
    assert cfg.cca_layers == (6, 9, 12, 15, 18, 21, 24)
    assert (cfg.encoder_depth, cfg.encoder_width, cfg.encoder_cca_layers) == (
        2,
        896,
        (1,),
    )
    assert paper_config("172m").cca_layers == (6, 9, 12)


def test_another_size_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'3b'.*172m, 425m, 1.5b, 7.5b"):
        paper_config("3b")


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(ModelConfig) if f.type is int]
)
def test_sizes_are_at_least_one(field):
    with pytest.raises(ValueError, match=f"model.{field} must be at least 1, is 0"):
        tiny_model.config(**{field: 0}).validate()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cca_layers": (0,)}, r"model.cca_layers must lie in 1..3, is \(0,\)"),
        ({"cca_layers": (2, 4)}, "model.cca_layers must lie in 1..3"),
        ({"cca_layers": (2, 2)}, "model.cca_layers names a layer twice"),
        ({"encoder_cca_layers": (3,)}, "model.encoder_cca_layers must lie in 1..2"),
        ({"share_embeddings": True}, "share_embeddings needs .* have 24 and 16"),
        ({"dtype": "float16"}, "model.dtype .* 'float16'"),
        ({"width": 15}, "must be even"),
        ({"encoder_width": 7}, "must be even"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.config(**changes).validate()


def test_a_good_config_passes_and_is_a_key(tiny_cfg):
    tiny_cfg.validate()
    tiny_model.config(cca_layers=(), encoder_cca_layers=(9,)).validate()
    assert hash(tiny_cfg) == hash(tiny_model.config())
    assert tiny_cfg != tiny_model.config(depth=4)


@pytest.mark.parametrize(
    "field",
    [
        "steps",
        "batch_size",
        "accumulation",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
    ],
)
def test_a_run_of_nothing_is_refused(field):
    cfg = TrainConfig(**({"steps": 1, "batch_size": 2} | {field: 0}))
    with pytest.raises(ValueError, match=f"train.{field} must be at least 1, is 0"):
        cfg.validate()


def test_no_step_may_be_skipped_but_not_fewer_than_none():
    TrainConfig(steps=1, batch_size=2, max_skipped_steps=0).validate()
    with pytest.raises(ValueError, match="max_skipped_steps must be at least 0, is -1"):
        TrainConfig(steps=1, batch_size=2, max_skipped_steps=-1).validate()


def test_accumulation_must_divide_the_batch():
    with pytest.raises(ValueError, match="batch_size 6 .*accumulation 4"):
        TrainConfig(steps=1, batch_size=6, accumulation=4).validate()
    TrainConfig(steps=1, batch_size=6, accumulation=3).validate()


def test_oracles_are_annealed_geometrically():
    cfg = TrainConfig(steps=3, batch_size=1, oracle_shares=(0.8, 0.2))
    cfg.validate()
    shares = [cfg.oracle_share(step) for step in range(3)]
    assert shares == pytest.approx([0.8, 0.4, 0.2])
    assert TrainConfig(steps=1, batch_size=1).oracle_share(0) == 0


@pytest.mark.parametrize("shares", [(0.5, 0.0), (0.0, 0.5), (1.5, 0.1), (0.5, -0.1)])
def test_shares_of_oracles_are_two_or_none(shares):
    cfg = TrainConfig(steps=3, batch_size=1, oracle_shares=shares)
    with pytest.raises(ValueError, match=r"train\.oracle_shares must be two shares"):
        cfg.validate()
