"""Saves big states in a child again and again, killed -9 each time in the middle.

Usage: python -m tests.killed_saves FOLDER SEED KILLS

Prints what each child did: 'restored N', 'started N', 'saved N', 'killed', or an error.
"""

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.runs.checkpoints import Checkpoints, abstract

SIZE = 4_000_000  # numbers: 16 MB
SPAN_S = 0.4  # longest time from the start of a save to the kill


def state_of(step: int) -> dict:
    words = np.random.default_rng(step).integers(1 << 23, size=SIZE, dtype=np.int32)
    return {"w_in_D": jnp.asarray(words, jnp.float32), "step": jnp.int32(step)}


def wanted():
    shapes = jax.eval_shape(lambda: state_of(0))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return abstract(shapes, jax.tree.map(lambda _: one, shapes))


def restored(keeper: Checkpoints) -> int:
    """The newest step, after every number of it has been compared."""
    step, state = keeper.restore(wanted(), {})
    jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
    return step


def save_for_ever(folder: Path) -> None:
    with contextlib.closing(Checkpoints(folder, keep=2)) as keeper:
        step = 0
        if keeper.latest_step() is not None:
            step = restored(keeper)
            print("restored", step, flush=True)
        while True:
            step += 1
            state = state_of(step)
            print("started", step, flush=True)
            keeper.save(step, state, {})
            keeper.wait()
            print("saved", step, flush=True)


def kill_one(folder: Path, rng: random.Random) -> None:
    """Starts a child and kills it within its first or second save."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.close(reads)
        os.dup2(writes, 1)
        save_for_ever(folder)
    os.close(writes)
    starts = rng.choice([1, 2])
    with os.fdopen(reads) as said:
        for line in said:
            print(line, end="")
            starts -= line.startswith("started")
            if not starts:
                time.sleep(rng.uniform(0, SPAN_S))
                os.kill(child, signal.SIGKILL)
                break
        print(said.read(), end="")
    _, status = os.waitpid(child, 0)
    print("killed" if os.waitstatus_to_exitcode(status) == -9 else "failed", flush=True)


def main(folder: str, seed: str, kills: str) -> None:
    rng = random.Random(int(seed))
    for _ in range(int(kills)):
        kill_one(Path(folder), rng)


if __name__ == "__main__":
    main(*sys.argv[1:])
