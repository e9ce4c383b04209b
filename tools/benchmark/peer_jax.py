"""Our whole step at the peer's shape, as a contestant of `peer.py`."""

import argparse
import os
import sys

from tools.benchmark import turns


def main() -> int:
    """Compiles the step, then takes turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="dtype=float32,remat=none")
    parser.add_argument("--retrieval", choices=["on", "off"], required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--cores", type=int, required=True)
    args = parser.parse_args()
    answers = turns.private_output()
    turns.keep_to_cores(args.cores)  # before JAX counts them
    os.environ["JAX_PLATFORMS"] = "cpu"  # where the peer runs

    import jax

    from retro_jax.config import MeshConfig, OptimizerConfig
    from retro_jax.devices import sharding
    from tools.benchmark import sizes
    from tools.benchmark.step import Step

    cfg = sizes.override(sizes.model("peer"), args.model)
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

    about = {
        "parameters": step.num_parameters,
        "compile_s": step.compile_s,
        "versions": f"jax {jax.__version__}",
    }
    turns.take_turns(answers, about, whole_step)
    return 0


if __name__ == "__main__":
    sys.exit(main())
