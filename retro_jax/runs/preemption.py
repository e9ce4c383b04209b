"""SIGTERM, which clusters send before they take a machine away, ends a run in order."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Preempted(Exception):
    """Training stopped when it was asked to; its checkpoint is on disk."""

    def __init__(self, step: int):
        super().__init__(
            f"asked to stop: step {step} is saved, the same command goes on from there"
        )
        self.step = step


@contextlib.contextmanager
def watch() -> Iterator[Callable[[int], bool]]:
    """Notes SIGTERM; yields `reached(step)`, which says whether to save and stop there.

    `reached` is to be asked once after every step. Further signals while the last step is
    saved change nothing. Where `jax.distributed` runs, JAX's own service listens in each
    process, and all agree on one step even if only one process was asked.
    """
    import jax  # here, so that a command line that only knows `Preempted` starts at once
    from jax.experimental import multihost_utils

    if jax.distributed.is_initialized():
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # Python hears signals in its main thread alone
        return
    before = signal.signal(signal.SIGTERM, lambda signum, frame: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
