r"""The paper's models: sizes, optimizer and schedule of sections 2 and 4.

    retro train --config=retro:172m \
        --workdir=DIR --database=DIR --config.mesh.model=4

The argument is a size (172m, 425m, 1.5b, 7.5b) and options after commas. The text is the
user's: `--config.data.corpus=...`.

- `baseline` is the same decoder without retrieval.
- `retrofit` starts from that baseline, freezes it and trains the encoder and CCA on 3 % of
  its sequences. In the paper this is enough to pass the baseline quickly and to come near
  the RETRO that was trained from scratch (section 4.2, figure 5).
- `modern` has rotary positions, gated feed-forwards and grouped key heads
  (`retro_jax.config.modern`).
- `fused` has sinusoids of 128 numbers in the decoder's self-attention, which fused kernels
  can take (6 % fewer parameters at 425m); all other positions are the paper's.

    retro train --config=retro:172m,retrofit \
        --workdir=DIR --database=DIR --config.init_from=BASELINE_WORKDIR
"""

from data_pipeline.config import DataConfig
from experiments.config import Experiment
from retro_jax.config import (
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    modern,
    paper_config,
)

_TOKENS = 419_430_400_000  # which every size was trained on
_SEQUENCE_LEN = 2048
_RETROFIT_SEQUENCES = 6_144_000  # 3 % of _TOKENS; the paper says about 6 million
_OPTIONS = ("baseline", "retrofit", "modern", "fused")


def get_config(arg: str = "172m") -> Experiment:
    """Gives the experiment of a size and options, with commas between."""
    size, *options = arg.split(",")
    for option in options:
        if option not in _OPTIONS:
            known = ", ".join(_OPTIONS)
            raise ValueError(f"retro.py has no option {option!r}; there are {known}")
    retrofits, large = "retrofit" in options, size == "7.5b"
    if retrofits and "baseline" in options:
        raise ValueError(f"retro.py: a baseline is not retrofitted, in {arg!r}")
    batch_size = 1024 if large and not retrofits else 256
    sequences = _RETROFIT_SEQUENCES if retrofits else _TOKENS // _SEQUENCE_LEN
    return Experiment(
        data=DataConfig(
            vocab_size=128_000,
            sequence_chunks=_SEQUENCE_LEN // 64,
            shard_size_bytes=256_000_000,
        ),
        model=_model(size, options),
        optimizer=OptimizerConfig(learning_rate=1e-4 if large else 2e-4),
        train=TrainConfig(
            steps=sequences // batch_size,
            batch_size=batch_size,
            log_every=100,
            checkpoint_every=1000,
        ),
        init_from="BASELINE_WORKDIR" if retrofits else "",
    )


def _model(size: str, options: list[str]) -> ModelConfig:
    model = paper_config(size)
    if model.depth > 12:
        model.scan_layers, model.remat = True, "full"
    if "baseline" in options:
        model.cca_layers = ()
    if "fused" in options:
        model.position_width = 128
    return modern(model) if "modern" in options else model
