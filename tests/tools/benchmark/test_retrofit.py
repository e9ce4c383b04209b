"""A retrofit's step beside the decoder's forward pass."""

import json

from data_pipeline.config import DataConfig
from experiments.config import Experiment
from retro_jax.config import OptimizerConfig, TrainConfig
from tests import tiny_decoder
from tools.benchmark import __main__, retrofit


def test_a_step_costs_less_the_more_is_kept(monkeypatch, tmp_path):
    experiment = Experiment(
        data=DataConfig(corpus="none", sequence_chunks=3),
        model=tiny_decoder.config(),
        optimizer=OptimizerConfig(),
        train=TrainConfig(steps=1, batch_size=2),
    )
    monkeypatch.setattr(retrofit.config, "get_config", lambda decoder: experiment)
    out = tmp_path / "retrofit.json"
    flags = ["--layers=3,4", "--rounds=1", f"--out={out}"]
    assert __main__.main(["retrofit", *flags]) == 0
    forward, encoding, *steps = json.loads(out.read_text())["rows"]
    nothing, neighbours, both, unrelated = (step["GFLOP"] for step in steps)
    assert both < neighbours < nothing
    # Unrelated passages cost a pass without them, through the layers above what is kept.
    assert both < unrelated < both + forward["GFLOP"]
    alone = forward["GFLOP"]
    beside = (alone + encoding["GFLOP"], alone, alone, alone)
    for step, below in zip(steps, beside, strict=True):
        assert abs(step["FLOP ratio"] * below / step["GFLOP"] - 1) < 0.01
        assert step["tokens/s"] > 0
