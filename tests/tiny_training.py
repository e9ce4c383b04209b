"""A short training that has everything: retrieval, packed documents, micro-batches."""

import itertools
from pathlib import Path

import numpy as np

from retro_jax.config import OptimizerConfig, TrainConfig
from retro_jax.devices import sharding
from retro_jax.runs.metrics import read_metrics
from retro_jax.training.batch import without_neighbours
from retro_jax.training.loop import train
from tests import tiny_model

CFG = tiny_model.small_config(
    num_heads=8, head_size=4, encoder_heads=8, encoder_head_size=4, remat="none"
)
OPTIMIZER = OptimizerConfig(learning_rate=3e-3)
BATCH_SIZE, ACCUMULATION, STEPS = 16, 2, 8
RUN = {"data": "abc"}


def batch(step: int) -> dict[str, np.ndarray]:
    """A batch of 16 sequences; each starts a document at a chunk of its own.

    That of step 6 comes without neighbours.
    """
    made = tiny_model.batch(CFG, num_sequences=BATCH_SIZE, num_chunks=4, seed=step)
    starts_B = CFG.chunk_len * (1 + np.arange(BATCH_SIZE) % 4)
    positions_L = np.arange(made["inputs_BL"].shape[1])
    made["segments_BL"] = 1 + (positions_L >= starts_B[:, None]).astype(np.int32)
    return without_neighbours(made) if step == 6 else made


def run(workdir: Path, mesh) -> dict:
    """Trains on this process's rows to step 8, or goes on to it; saves at 5 and 8."""
    cfg = TrainConfig(
        steps=STEPS,
        batch_size=BATCH_SIZE,
        accumulation=ACCUMULATION,
        log_every=1,
        checkpoint_every=5,
        keep_checkpoints=5,
    )
    rows = sharding.local_rows(BATCH_SIZE, mesh)

    def batches_from(step):
        for number in itertools.count(step):
            yield {name: array[rows] for name, array in batch(number).items()}

    return train(CFG, OPTIMIZER, cfg, mesh, batches_from, workdir, RUN)


def measured(workdir: Path) -> dict[int, tuple[float, float]]:
    """Loss and norm of the gradients by step, as written."""
    return {
        row["step"]: (row["loss_nats_per_token"], row["gradient_norm"])
        for row in read_metrics(workdir / "metrics" / "metrics.jsonl")
    }
