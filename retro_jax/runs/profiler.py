"""A profiler trace of some steps, which TensorBoard and Perfetto show."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from retro_jax.runs import metrics


class Profile:
    """A trace from the begin of one step to the end of another."""

    def __init__(self, folder: Path, steps: Sequence[int], *, writes: bool = True):
        """Nothing is traced without `steps`, nor with `writes` off, as in all processes but one."""
        self._folder, self._running = folder, False
        self._first, self._last = steps if steps and writes else (0, 0)

    @contextlib.contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Traces the block, a step, if it is one of those that were asked for."""
        if not 0 < self._first <= step <= self._last:
            yield
            return
        if not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def after(self, step: int, results: object) -> None:
        """Ends the trace if this was its last step, once the step is done on the device."""
        if self._running and step >= self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Writes a trace that is under way."""
        if not self._running:
            return
        self._running = False
        jax.profiler.stop_trace()
        metrics.say(
            f"a profiler trace from step {self._first} on is in {self._folder} "
            "(tensorboard --logdir, or ui.perfetto.dev)"
        )
