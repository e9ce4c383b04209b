"""One thread that owns the model, and the requests that wait for it.

Requests come from other threads. The model's thread lets them join between chunks, as far as
there are rows, gives each what was said for it, and drops those that nobody waits for.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import numpy as np

from experiments.serving.refusals import RefusalError
from retro_jax.continuous_batching import Said, Scores, Wanted

_TEXTS_KEPT = 32  # whose time tells others when to come again


class Model(Protocol):
    """What continues texts; see `retro_jax.continuous_batching.ContinuousBatch`."""

    most_texts: int
    window_tokens: int

    @property
    def num_free(self) -> int: ...
    def join(self, name: Hashable, wanted: Wanted) -> None: ...
    def leave(self, name: Hashable) -> None: ...
    def step(self) -> dict[Hashable, Said]: ...
    def scores(self, prompt: np.ndarray, num_neighbours: int | None) -> Scores: ...


@dataclasses.dataclass(eq=False)
class Task:
    """A text that is wanted.

    Attributes:
        wanted: what is to be said; None if the prompt is only to be scored.
        score: the prompt, if it is to be scored before.
        take: is given what was scored, then each piece that was said, in the model's
            thread; says whether it wants no more. It must not fail.
        fail: is told why nothing more comes.
        deadline_s: on the monotonic clock; what is said by then is all.
    """

    wanted: Wanted | None
    take: Callable[[Said | Scores], bool]
    fail: Callable[[Exception], None]
    deadline_s: float
    score: np.ndarray | None = None
    num_neighbours: int | None = None
    is_cancelled: bool = False


@dataclasses.dataclass
class Counts:
    """What has happened since the start."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    step_seconds: float = 0.0


class Scheduler:
    """The queue in front of a model, and the thread that works on it."""

    def __init__(self, model: Model, *, most_waiting: int):
        """Begins to work on what is submitted, until `close`."""
        self._model, self._most_waiting = model, most_waiting
        self._waiting: collections.deque[Task] = collections.deque()
        self._under_way: dict[Task, float] = {}  # when each began
        self._changed = threading.Condition()
        self._is_closed, self.counts = False, Counts()
        self._durations_s: collections.deque[float] = collections.deque(
            maxlen=_TEXTS_KEPT
        )
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Texts that have not begun."""
        return len(self._waiting)

    @property
    def num_under_way(self) -> int:
        """Texts that are being written; one whose end was told is none of them."""
        with self._changed:
            return len(self._under_way)

    @property
    def is_alive(self) -> bool:
        """Whether there is somebody to work."""
        return self._thread.is_alive()

    def submit(self, tasks: Sequence[Task]) -> None:
        """Puts tasks at the end of the queue, all or none.

        Raises:
            RefusalError: if there is no room for them.
        """
        with self._changed:
            if self._is_closed or not self.is_alive:
                raise RefusalError("the server is shutting down", status=503)
            if len(self._waiting) + len(tasks) > self._most_waiting:
                self.counts.refused += 1
                raise RefusalError(
                    f"{len(self._waiting)} texts are waiting already: come again later",
                    status=429,
                    code="queue_full",
                    headers={"Retry-After": str(self._wait_s())},
                )
            self.counts.requests += 1
            self._waiting.extend(tasks)
            self._changed.notify()

    def cancel(self, tasks: Sequence[Task]) -> None:
        """Drops tasks that nobody waits for any more; those that have ended stay so."""
        with self._changed:
            for task in tasks:
                task.is_cancelled = True

    def close(self) -> None:
        """Ends the work; what is under way fails."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(timeout=60)

    def _wait_s(self) -> int:
        """When to come again, in whole seconds, by what the last texts took."""
        mean_s = sum(self._durations_s) / max(len(self._durations_s), 1)
        rounds = 1 + len(self._waiting) / max(self._model.most_texts, 1)
        return max(1, min(round(mean_s * rounds), 60))

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._under_way or self._is_closed):
                    self._changed.wait()
                if self._is_closed:
                    break
            self._drop()
            self._admit()
            self._step()
        self._fail_all(RefusalError("the server is shutting down", status=503))

    def _drop(self) -> None:
        """Lets go of what was cancelled or has had its time."""
        now = time.monotonic()
        for task in list(self._under_way):
            if self._is_over(task, now):
                self._model.leave(task)
                self._end(task)
        with self._changed:
            kept = [t for t in self._waiting if not self._is_over(t, now)]
            gone = [t for t in self._waiting if self._is_over(t, now)]
            self._waiting = collections.deque(kept)
        for task in gone:
            self._end(task)

    @staticmethod
    def _is_over(task: Task, now: float) -> bool:
        return task.is_cancelled or now > task.deadline_s

    def _end(self, task: Task) -> None:
        """Ends a task early: by its time, unless nobody waits for it."""
        has_begun = self._under_way.pop(task, None) is not None
        if task.is_cancelled:
            self.counts.cancelled += 1
        elif not has_begun:
            message = "the time for this request was over before it could begin"
            task.fail(RefusalError(message, status=503, code="timeout"))
        else:
            nothing = np.zeros(0, np.int32)
            task.take(Said(tokens=nothing, log_probs=nothing, finish="length"))

    def _admit(self) -> None:
        """Lets waiting tasks join, as far as there is room."""
        while self._model.num_free:
            with self._changed:
                if not self._waiting:
                    return
                task = self._waiting.popleft()
            if not task.is_cancelled:
                self._begin(task)

    def _begin(self, task: Task) -> None:
        try:
            if task.score is not None:
                self.counts.prompt_tokens += len(task.score)
                scores = self._model.scores(task.score, task.num_neighbours)
                if task.take(scores) or task.wanted is None:
                    return
            if task.wanted is not None:
                self._under_way[task] = time.monotonic()
                self.counts.prompt_tokens += len(task.wanted.prompt)
                self._model.join(task, task.wanted)
        except Exception as error:  # noqa: BLE001  one's failure is not the others'
            self._under_way.pop(task, None)
            self._model.leave(task)
            self.counts.failed += 1
            task.fail(error)

    def _step(self) -> None:
        if not self._under_way:
            return
        start_s = time.monotonic()
        try:
            said = self._model.step()
        except Exception as error:  # noqa: BLE001  later texts may do better
            self._fail_all(error, waiting=False)
            return
        self.counts.steps += 1
        self.counts.step_seconds += time.monotonic() - start_s
        # Who is told the end of a text and then asks what is under way must not find
        # it there: the lock is held from the telling until it is gone.
        with self._changed:
            for task in list(self._under_way):
                piece = said[task]
                self.counts.generated_tokens += len(piece.tokens)
                if task.take(piece) or piece.finish:
                    began_s = self._under_way.pop(task)
                    self._durations_s.append(time.monotonic() - began_s)
                    self._model.leave(task)

    def _fail_all(self, error: Exception, *, waiting: bool = True) -> None:
        with self._changed:
            tasks = list(self._under_way)
            if waiting:
                tasks += self._waiting
                self._waiting.clear()
            self._under_way.clear()
        for task in tasks:
            self._model.leave(task)
            self.counts.failed += 1
            task.fail(error)
