"""SIGTERM and SIGUSR2, which clusters send before they take a machine away, end a run in order."""

import contextlib
import os
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
    """Notes both signals; yields `reached(step)`, which says whether to save and stop there.

    `reached` is to be asked once after every step. Further signals while the last step is
    saved change nothing. Where `jax.distributed` runs, JAX's own service listens to SIGTERM
    in each process, and all agree on one step even if only one process was asked.
    """
    import jax  # here, so that a command line that only knows `Preempted` starts at once
    from jax.experimental import multihost_utils

    if threading.current_thread() is not threading.main_thread():
        # Python hears signals in its main thread alone; JAX's service in any.
        yield (
            multihost_utils.reached_preemption_sync_point
            if jax.distributed.is_initialized()
            else lambda step: False
        )
        return
    with _heard(signal.SIGUSR2, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        if jax.distributed.is_initialized():
            yield multihost_utils.reached_preemption_sync_point
            return
        asked = threading.Event()
        with _heard(signal.SIGTERM, asked.set):
            yield lambda step: asked.is_set()


@contextlib.contextmanager
def _heard(number: int, act: Callable[[], None]) -> Iterator[None]:
    """Acts whenever the signal comes, while the block runs."""
    before = signal.signal(number, lambda signum, frame: act())
    try:
        yield
    finally:
        signal.signal(number, before or signal.SIG_DFL)
