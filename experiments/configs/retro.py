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

- A slice of TPUs such as `v5p:4x4x4`, or a number of GPUs such as `h100:16`, sets how
  parameters and batch are shared out among so many devices (`layout`).

    retro launch --config=retro:7.5b,v5p:4x4x4 --executor=gke --accelerator=v5p:4x4x4 \
        --hosts=16 --out=DIR --database=DIR --image=IMAGE --claim=NAME --volume=PATH
"""

import math
import re
from typing import NamedTuple

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
_KINDS = ("v4", "v5e", "v5p", "v6e", "h100", "h200")
_ROWS = 2  # sequences of a micro-batch on a device, unless another number was found
# Parts that every parameter can be cut into: 896, the encoder's width, is 7 times as much.
_MOST_PARTS = 128


class Layout(NamedTuple):
    """How a step is shared out.

    Attributes:
        model: devices that share out a layer; the others share out the batch.
        accumulation: micro-batches of a step.
    """

    model: int
    accumulation: int


# Found by trying with `make aot`: what fits with room to spare and is fastest by the
# roofline. Fewer micro-batches gather the parameters less often.
FOUND = {
    ("172m", "v5e:4x4"): Layout(1, 8),
    ("7.5b", "v4:4x4x4"): Layout(1, 8),
    ("7.5b", "v5e:16x16"): Layout(2, 8),
    ("7.5b", "v5p:4x4x4"): Layout(1, 4),
    ("7.5b", "v6e:16x16"): Layout(2, 4),
    ("7.5b,fused", "v4:4x4x4"): Layout(1, 4),
    ("7.5b,fused", "v5e:16x16"): Layout(2, 4),
    ("7.5b,fused", "v5p:4x4x4"): Layout(1, 2),
    ("7.5b,fused", "v6e:16x16"): Layout(2, 2),
}


def get_config(arg: str = "172m") -> Experiment:
    """Gives the experiment of a size and options, with commas between."""
    words = arg.split(",")
    places = [word for word in words if ":" in word]
    size, *options = (word for word in words if word not in places)
    for option in options:
        if option not in _OPTIONS:
            known = ", ".join(_OPTIONS)
            raise ValueError(
                f"retro.py has no option {option!r}; there are {known}, and slices such as "
                "v5p:4x4x4"
            )
    retrofits, large = "retrofit" in options, size == "7.5b"
    if retrofits and "baseline" in options:
        raise ValueError(f"retro.py: a baseline is not retrofitted, in {arg!r}")
    batch_size = 1024 if large and not retrofits else 256
    sequences = _RETROFIT_SEQUENCES if retrofits else _TOKENS // _SEQUENCE_LEN
    made = Experiment(
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
    for place in places:
        chosen = layout(",".join([size, *options]), place, batch_size)
        made.mesh.model = chosen.model
        made.train.accumulation = chosen.accumulation
    return made


def num_devices(place: str) -> int:
    """The devices of `v5p:4x4x4` or of `h100:16`.

    Raises:
        ValueError: for another kind, or what is no shape.
    """
    found = re.fullmatch(rf"({'|'.join(_KINDS)}):([1-9]\d*(?:x[1-9]\d*)*)", place)
    if found is None:
        raise ValueError(
            f"{place} is not KIND:SHAPE, such as v5p:4x4x4 or h100:16; kinds are "
            f"{', '.join(_KINDS)}"
        )
    return math.prod(map(int, found[2].split("x")))


def layout(model: str, place: str, batch_size: int) -> Layout:
    """How a model's step is shared out among the devices of a place.

    Where nothing was found (`FOUND`) a device gets two sequences of a micro-batch, if there
    are so many.

    Args:
        model: the argument of `get_config`, without a place.

    Raises:
        ValueError: for an unknown place, or one with more devices than sequences.
    """
    if (model, place) in FOUND:
        return FOUND[model, place]
    devices = num_devices(place)
    of_layer = -(-devices // _MOST_PARTS)
    groups = devices // of_layer
    if batch_size % groups:
        raise ValueError(
            f"the {devices} devices of {place} can't share out {batch_size} sequences of a "
            "step: take a slice whose chips divide them"
        )
    rows = batch_size // groups
    return Layout(of_layer, max(rows // _ROWS, 1))


def _model(size: str, options: list[str]) -> ModelConfig:
    model = paper_config(size)
    if model.depth > 12:
        model.scan_layers, model.remat = True, "full"
    if "baseline" in options:
        model.cca_layers = ()
    if "fused" in options:
        model.position_width = 128
    return modern(model) if "modern" in options else model
