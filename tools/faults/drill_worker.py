"""One process of a drill: trains a tiny model in a folder, anew or from what is there.

    python -m tools.faults.drill_worker '{"folder": ..., "address": ..., ...}'

It writes which rows of which step it read, and what it is told goes wrong in it.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from retro_jax.config import ModelConfig

BATCH_SIZE, CHUNKS, CHUNK_LEN, NEIGHBOURS = 8, 2, 8, 1


@dataclasses.dataclass(frozen=True)
class Task:
    """What a process of a drill is to do, and what goes wrong in it."""

    folder: str
    count: int = 1
    number: int = 0
    address: str = ""
    mesh: tuple[int, int] = (8, 1)  # data, model
    steps: int = 12
    heartbeat_s: int = 10
    step_s: float = 0.0  # slower by so much at each step
    skew_s: float = 0.0  # its clock is wrong by so much
    most_file_bytes: int = 0  # as on a full disk


def batch(step: int) -> dict[str, np.ndarray]:
    """The batch of a step: random text and neighbours."""
    rng = np.random.default_rng((1, step))
    length, neighbour_len = CHUNKS * CHUNK_LEN, 2 * CHUNK_LEN
    tokens = rng.integers(1, 64, (BATCH_SIZE, length + 1), dtype=np.int32)
    shape = (BATCH_SIZE, CHUNKS, NEIGHBOURS)
    return {
        "inputs_BL": tokens[:, :-1],
        "targets_BL": tokens[:, 1:],
        "loss_weights_BL": np.ones((BATCH_SIZE, length), np.float32),
        "target_bytes_BL": np.ones((BATCH_SIZE, length), np.int32),
        "segments_BL": np.ones((BATCH_SIZE, length), np.int32),
        "neighbours_BCNR": rng.integers(1, 64, (*shape, neighbour_len), dtype=np.int32),
        "neighbour_lengths_BCN": np.full(shape, neighbour_len, np.int32),
    }


def main(argv: list[str]) -> None:
    """Does the task that is given as JSON, joined with the others if there are any."""
    task = Task(**json.loads(argv[0]))
    if task.skew_s:
        true_time = time.time
        time.time = lambda: true_time() + task.skew_s
    if task.count == 1:
        _train(task)
        return
    from experiments import command_line
    from retro_jax.devices import processes

    cluster = processes.Cluster(
        coordinator=task.address,
        num_processes=task.count,
        process_id=task.number,
        heartbeat_s=task.heartbeat_s,
    )
    with processes.JoinedProcesses(cluster):
        if status := command_line.run(lambda _: _train(task), []):
            sys.exit(status)


def model() -> "ModelConfig":
    """The tiny model that is trained."""
    from retro_jax.config import ModelConfig

    return ModelConfig(
        vocab_size=64,
        depth=1,
        width=16,
        num_heads=2,
        head_size=8,
        ffw_width=32,
        chunk_len=CHUNK_LEN,
        cca_layers=(1,),
        neighbour_len=2 * CHUNK_LEN,
        encoder_depth=1,
        encoder_width=16,
        encoder_heads=2,
        encoder_head_size=8,
        encoder_ffw_width=32,
        remat="none",
    )


def _train(task: Task) -> None:
    from retro_jax.config import MeshConfig, OptimizerConfig, TrainConfig
    from retro_jax.devices import sharding
    from retro_jax.training import loop

    cfg = TrainConfig(
        steps=task.steps,
        batch_size=BATCH_SIZE,
        log_every=1,
        checkpoint_every=4,
        keep_checkpoints=3,
    )
    folder = Path(task.folder)
    mesh = sharding.make_mesh(MeshConfig(data=task.mesh[0], model=task.mesh[1]))
    rows = sharding.local_rows(BATCH_SIZE, mesh)
    if task.most_file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task.most_file_bytes,) * 2)

    def batches_from(first: int) -> Iterator[dict[str, np.ndarray]]:
        for step in itertools.count(first):
            time.sleep(task.step_s)
            made = batch(step)
            _note(folder / f"order-{os.getpid()}.jsonl", step, rows, made["inputs_BL"])
            yield {name: array[rows] for name, array in made.items()}

    loop.train(
        model(), OptimizerConfig(), cfg, mesh, batches_from, folder, {"data": "drill"}
    )
    print("done", flush=True)


def _note(path: Path, step: int, rows: np.ndarray, inputs_BL: np.ndarray) -> None:
    """Appends which rows of a step are read, each with a checksum."""
    sums = {
        int(r): hashlib.sha256(inputs_BL[r].tobytes()).hexdigest()[:8] for r in rows
    }
    with path.open("a") as file:
        file.write(json.dumps({"step": step + 1, "rows": sums}) + "\n")


if __name__ == "__main__":
    from experiments import command_line

    command_line.end_at_interrupt()
    sys.exit(command_line.run(main, sys.argv[1:]))
