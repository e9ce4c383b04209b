"""The paper's models: sizes, optimizer and schedule of sections 2 and 4.

    python -m experiments.main --config=experiments/configs/retro.py:172m \
        --workdir=DIR --database=DIR --job=train --config.mesh.model=4

The argument is a size (172m, 425m, 1.5b, 7.5b), with `,baseline` for the same decoder
without retrieval. Data is the user's: `--config.data.corpus=...`.
"""

from data_pipeline.config import DataConfig
from experiments.config import Experiment
from retro_jax.config import OptimizerConfig, TrainConfig, paper_config

_TOKENS = 419_430_400_000  # that every size was trained on
_SEQUENCE_LEN = 2048


def get_config(arg: str = "172m") -> Experiment:
    """`arg` is a size, or a size and 'baseline'."""
    size, *options = arg.split(",")
    if options not in ([], ["baseline"]):
        raise ValueError(f"retro.py knows SIZE and SIZE,baseline, not {arg!r}")
    model = paper_config(size)
    model.dtype = "auto"
    if options:
        model.cca_layers = ()
    large = size == "7.5b"
    batch_size = 1024 if large else 256
    return Experiment(
        data=DataConfig(
            vocab_size=128_000,
            sequence_chunks=_SEQUENCE_LEN // 64,
            shard_size_bytes=256_000_000,
        ),
        model=model,
        optimizer=OptimizerConfig(learning_rate=1e-4 if large else 2e-4),
        train=TrainConfig(
            steps=_TOKENS // (batch_size * _SEQUENCE_LEN),
            batch_size=batch_size,
            log_every=100,
            checkpoint_every=1000,
        ),
    )
