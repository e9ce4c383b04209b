"""One of two processes that train together, slowly enough to be stopped in between.

Usage: python -m tests.preempted_pair ADDRESS INDEX FOLDER STEPS
"""

import sys
import time
from pathlib import Path

import jax

from experiments import command_line
from retro_jax.config import MeshConfig, OptimizerConfig, TrainConfig
from retro_jax.devices.sharding import make_mesh
from retro_jax.training.loop import train
from tests import tiny_model

# Its embedding is large enough for each process to have a file of its own.
CFG = tiny_model.small_config(vocab_size=512)
OPTIMIZER = OptimizerConfig(learning_rate=3e-3)
RUN = {"data": "abc"}


def batches_from(step: int):
    """The two rows of this process; 0.1 s a step."""
    while True:
        batch = tiny_model.batch(CFG, num_sequences=4, seed=step)
        first = 2 * jax.process_index()
        yield {name: array[first : first + 2] for name, array in batch.items()}
        time.sleep(0.1)
        step += 1


def main(argv: list[str]) -> None:
    address, index, folder, steps = argv
    jax.distributed.initialize(address, 2, int(index))
    cfg = TrainConfig(steps=int(steps), batch_size=4, log_every=1, checkpoint_every=5)
    mesh = make_mesh(MeshConfig(data=2))
    train(CFG, OPTIMIZER, cfg, mesh, batches_from, Path(folder), RUN)


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv[1:]))
