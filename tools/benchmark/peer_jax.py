"""Our whole step at the peer's shape, as a contestant of `peer.py`."""

import argparse
import os
from collections.abc import Callable

from tools.benchmark import contestant


def _whole_step(args: argparse.Namespace) -> tuple[dict, Callable[[], float]]:
    os.environ["JAX_PLATFORMS"] = "cpu"  # where the peer runs

    from retro_jax.config import MeshConfig, OptimizerConfig
    from retro_jax.devices import sharding
    from tools.benchmark import sizes
    from tools.benchmark.step import Step

    cfg = sizes.override(sizes.model("peer"), args.mode)
    usual = sizes.LOADS["peer"]
    batch = sizes.synthetic_batch(
        cfg, sizes.Load(sequence_len=usual.sequence_len, batch_size=args.batch_size)
    )
    if args.retrieval == "off":
        cfg = sizes.without_retrieval(cfg)
    # As the peer's: it does not clip, and its rate is 3e-4 from the first step.
    optimizer = OptimizerConfig(
        learning_rate=3e-4, learning_rate_start=3e-4, clip_norm=0.0
    )
    step = Step(cfg, optimizer, batch, sharding.make_mesh(MeshConfig()))
    step.start()

    def whole_step() -> float:
        step.run(1)
        return step.last_loss_nats

    about = {"parameters": step.num_parameters, "compile_s": step.compile_s}
    return about, whole_step


if __name__ == "__main__":
    contestant.serve(_whole_step)
