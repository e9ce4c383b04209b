r"""The whole of RETRO on a laptop, in minutes: what `make train` runs.

    retro database --config=tiny \
        --database=work/tiny/database
    retro train --config=tiny \
        --workdir=work/tiny

`:baseline` is the same model without retrieval, for comparison. `:retrofit` begins with
that baseline, frozen, and trains the encoder and CCA alone:

    retro train --config=tiny:baseline \
        --workdir=work/tiny-baseline --database=work/tiny/database
    retro train --config=tiny:retrofit \
        --workdir=work/tiny-retrofit --database=work/tiny/database \
        --config.init_from=work/tiny-baseline

The chunk of 64 tokens, the neighbour of 128 and two neighbours a chunk are the paper's. All
else is smaller, and CCA starts as a copier (`retro_jax.model.initial_copier`): 0.7 M tokens
are too few to learn copying. A retrofit starts with that copier switched off
(`retro_jax.training.retrofit`).
"""

from collections.abc import Callable

from data_pipeline.config import DataConfig
from experiments.config import EvaluationConfig, Experiment
from retro_jax.config import ModelConfig, OptimizerConfig, TrainConfig


def get_config(arg: str = "") -> Experiment:
    """Gives the experiment of RETRO (''), its baseline or its retrofit."""
    if arg not in ("", "baseline", "retrofit"):
        raise ValueError(f"tiny.py knows '', 'baseline' and 'retrofit', not {arg!r}")
    is_baseline = arg == "baseline"
    return Experiment(
        data=DataConfig(
            embedded_size_bytes=4_000_000,
            validation_share=0.02,
            test_share=0.07,
            vocab_size=2048,
            shard_size_bytes=1_000_000,
        ),
        model=ModelConfig(
            vocab_size=2048,
            depth=4,
            width=128,
            num_heads=2,
            head_size=64,
            ffw_width=512,
            cca_layers=() if is_baseline else (2, 4),
            encoder_depth=1,
            encoder_width=128,
            encoder_heads=2,
            encoder_head_size=64,
            encoder_ffw_width=256,
            share_embeddings=True,
            copy_init=not is_baseline,
            remat="none",
        ),
        optimizer=OptimizerConfig(
            learning_rate=3e-3, warmup_steps=50, final_share=0.05
        ),
        train=TrainConfig(steps=700, batch_size=2, log_every=20, checkpoint_every=100),
        # The likeliest token alone sends a model this small round in circles.
        evaluation=EvaluationConfig(temperature=0.7, top_p=0.9),
        init_from="work/tiny-baseline" if arg == "retrofit" else "",
    )


def sweep(add: Callable[..., None]) -> None:
    """Gives six work units: three rates of learning with two seeds each."""
    for learning_rate in (1e-3, 3e-3, 1e-2):
        for seed in (0, 1):
            add(**{"optimizer.learning_rate": learning_rate, "train.seed": seed})
