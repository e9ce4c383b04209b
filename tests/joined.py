"""One of several processes, for tests: joins the others, then does one of two things.

Usage: python -m tests.joined train COORDINATOR COUNT NUMBER DATA MODEL FOLDER
       python -m tests.joined jobs --config=... (flags of experiments.main, without --job)
"""

import sys
from pathlib import Path

import numpy as np


def train(
    coordinator: str, count: str, number: str, data: str, model: str, folder: str
) -> None:
    """Trains in FOLDER/run, anew or from what is there; measures losses of chunks."""
    from retro_jax import evaluation
    from retro_jax.config import MeshConfig
    from retro_jax.devices import processes, sharding
    from tests import tiny_training

    cluster = processes.Cluster(
        coordinator=coordinator,
        num_processes=int(count),
        process_id=int(number),
        heartbeat_s=20,
        join_timeout_s=120,
    )
    with processes.JoinedProcesses(cluster):
        mesh = sharding.make_mesh(MeshConfig(data=int(data), model=int(model)))
        state = tiny_training.run(Path(folder) / "run", mesh)
        losses = evaluation.chunk_losses(
            tiny_training.CFG,
            state["params"],
            mesh,
            [tiny_training.batch(0) | {"documents_BC": np.zeros((16, 4), np.int32)}],
            retrieval=True,
        )
        rows = sharding.local_rows(tiny_training.BATCH_SIZE, mesh).tolist()
        np.save(Path(folder) / f"losses-{number}.npy", losses.loss_nats_X)
        Path(folder, f"rows-{number}.txt").write_text(str(rows))
        print("done", flush=True)


def jobs(*flags: str) -> None:
    """Trains, then evaluates, as experiments.main does; with the toy embedder."""
    from experiments import command_line, main
    from retro_jax.devices import processes
    from tests import tiny_corpus

    def both(argv: list[str]) -> None:
        cluster = main._cluster()
        assert cluster is not None
        with tiny_corpus.toy_embedder(), processes.JoinedProcesses(cluster):
            for job in ("train", "evaluate"):
                command_line.flags.FLAGS.job = job
                main._do_job()

    sys.argv = ["main", *flags, "--job=train"]
    command_line.start(both)


if __name__ == "__main__":
    {"train": train, "jobs": jobs}[sys.argv[1]](*sys.argv[2:])
