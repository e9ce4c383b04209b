"""A queue that is bounded, and a thread that outlives what goes wrong."""

import threading
import time

import numpy as np
import pytest

from experiments.serving.refusals import RefusalError
from experiments.serving.scheduler import Scheduler, Task
from retro_jax.continuous_batching import Wanted
from tests.served_model import ScriptedModel, until


class _Asked:
    """A task, with what it was given."""

    def __init__(self, num_tokens: int = 8, time_s: float = 60.0):
        self.taken, self.failed = [], []
        self.task = Task(
            wanted=Wanted(prompt=np.ones(1, np.int32), num_tokens=num_tokens),
            take=self._take,
            fail=self.failed.append,
            deadline_s=time.monotonic() + time_s,
        )

    def _take(self, piece) -> bool:
        self.taken.append(piece)
        return False

    @property
    def is_over(self) -> bool:
        return bool(self.failed or (self.taken and self.taken[-1].finish))


@pytest.fixture
def model():
    return ScriptedModel([7, 8, 9], most_texts=2)


@pytest.fixture
def scheduler(model):
    made = Scheduler(model, most_waiting=2)
    yield made
    model.hold.set()
    made.close()


def _full(scheduler, model) -> list[_Asked]:
    """Two texts under way, in a step that does not end, and two that wait."""
    model.hold.clear()
    asked = [_Asked() for _ in range(4)]
    scheduler.submit([asked[0].task])
    until(lambda: model.num_texts == 1)
    scheduler.submit([each.task for each in asked[1:3]])
    return asked


def test_texts_join_between_chunks_and_share_steps(scheduler, model):
    asked = _full(scheduler, model)[:3]
    model.hold.set()
    until(lambda: all(each.is_over for each in asked))
    assert scheduler.num_under_way == 0 and model.num_texts == 0
    assert model.most_at_once == 2
    assert scheduler.counts.generated_tokens == 24
    assert scheduler.counts.steps < 15  # what three texts need one by one


def test_a_text_whose_end_was_told_is_not_under_way(scheduler):
    asked, found = _Asked(num_tokens=1), []

    def is_told(piece) -> bool:
        """Looks as another thread would that was told at once."""
        look = threading.Thread(target=lambda: found.append(scheduler.num_under_way))
        look.start()
        look.join(timeout=0.2)
        asked.taken.append(piece)
        return True

    asked.task.take = is_told
    scheduler.submit([asked.task])
    until(lambda: found)
    assert found == [0]


def test_a_full_queue_refuses_and_says_when_to_come_again(scheduler, model):
    asked = _full(scheduler, model)
    with pytest.raises(RefusalError) as refused:
        scheduler.submit([asked[3].task])
    assert refused.value.status == 429
    assert int(refused.value.headers["Retry-After"]) >= 1
    assert scheduler.counts.refused == 1
    model.hold.set()
    until(lambda: all(each.is_over for each in asked[:3]))
    scheduler.submit([asked[3].task])
    until(lambda: asked[3].is_over)


def test_what_nobody_waits_for_leaves_the_queue_and_the_model(scheduler, model):
    asked = _full(scheduler, model)
    scheduler.cancel([asked[0].task, asked[1].task])
    model.hold.set()
    until(lambda: asked[2].is_over and scheduler.counts.cancelled == 2)
    assert len(asked[0].taken) == 1 and not asked[1].taken  # the step under way ends


def test_a_text_whose_time_is_over_ends_with_what_was_said(scheduler, model):
    asked = _Asked(num_tokens=1000, time_s=0.3)
    model.step_s = 0.1
    scheduler.submit([asked.task])
    until(lambda: asked.is_over)
    assert asked.taken[-1].finish == "length" and 1 < len(asked.taken) < 20


def test_a_text_whose_time_is_over_before_it_began_is_told(scheduler, model):
    asked, late = _full(scheduler, model), _Asked(time_s=-1)
    scheduler.cancel([each.task for each in asked])
    model.hold.set()
    until(lambda: scheduler.num_waiting == 0)
    scheduler.submit([late.task])
    until(lambda: late.is_over)
    assert late.failed[0].code == "timeout" and not late.taken


def test_a_step_that_fails_fails_those_in_it_and_no_later_ones(scheduler, model):
    asked = _full(scheduler, model)
    model.error = MemoryError("too much")
    model.hold.set()
    until(lambda: all(each.is_over for each in asked[:3]))
    assert isinstance(asked[0].failed[0], MemoryError)
    assert not asked[1].failed and asked[1].taken
    assert scheduler.is_alive


def test_a_prompt_that_fails_fails_alone(scheduler, model, monkeypatch):
    broken, whole = _Asked(), _Asked()
    join = model.join

    def failing(task, wanted):
        if task is broken.task:
            raise ValueError("this prompt")
        join(task, wanted)

    monkeypatch.setattr(model, "join", failing)
    scheduler.submit([broken.task, whole.task])
    until(lambda: broken.is_over and whole.is_over)
    assert broken.failed and not whole.failed


def test_closing_tells_all_who_wait(scheduler, model):
    asked = _full(scheduler, model)
    scheduler._is_closed = True
    model.hold.set()
    scheduler.close()
    assert all(each.failed[0].status == 503 for each in asked[1:3])
    with pytest.raises(RefusalError, match="shutting down"):
        scheduler.submit([asked[3].task])
