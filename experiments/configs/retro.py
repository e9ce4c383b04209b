"""The paper's models: sizes, optimizer and schedule of sections 2 and 4.

    python -m experiments.main --config=experiments/configs/retro.py:172m \
        --workdir=DIR --database=DIR --job=train --config.mesh.model=4

The argument is a size (172m, 425m, 1.5b, 7.5b), with `,baseline` for the same decoder
without retrieval. Data is the user's: `--config.data.corpus=...`.

`,retrofit` starts from that baseline, freezes it and trains the encoder and CCA on 3 % of
its sequences: in the paper enough to pass the baseline quickly and to come near the RETRO
that was trained from scratch (section 4.2, figure 5).

    python -m experiments.main --config=experiments/configs/retro.py:172m,retrofit \
        --workdir=DIR --database=DIR --job=train --config.init_from=BASELINE_WORKDIR
"""

from data_pipeline.config import DataConfig
from experiments.config import Experiment
from retro_jax.config import OptimizerConfig, TrainConfig, paper_config

_TOKENS = 419_430_400_000  # that every size was trained on
_SEQUENCE_LEN = 2048
_RETROFIT_SEQUENCES = 6_144_000  # 3 % of theirs; the paper: about 6 million


def get_config(arg: str = "172m") -> Experiment:
    """`arg` is a size, or a size and 'baseline' or 'retrofit'."""
    size, *options = arg.split(",")
    if options not in ([], ["baseline"], ["retrofit"]):
        raise ValueError(
            f"retro.py knows SIZE, SIZE,baseline and SIZE,retrofit, not {arg!r}"
        )
    model = paper_config(size)
    model.dtype = "auto"
    if options == ["baseline"]:
        model.cca_layers = ()
    retrofits, large = options == ["retrofit"], size == "7.5b"
    batch_size = 1024 if large and not retrofits else 256
    sequences = _RETROFIT_SEQUENCES if retrofits else _TOKENS // _SEQUENCE_LEN
    return Experiment(
        data=DataConfig(
            vocab_size=128_000,
            sequence_chunks=_SEQUENCE_LEN // 64,
            shard_size_bytes=256_000_000,
        ),
        model=model,
        optimizer=OptimizerConfig(learning_rate=1e-4 if large else 2e-4),
        train=TrainConfig(
            steps=sequences // batch_size,
            batch_size=batch_size,
            log_every=100,
            checkpoint_every=1000,
        ),
        init_from="BASELINE_WORKDIR" if retrofits else "",
    )
