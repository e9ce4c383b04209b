"""What a server has done and has to do, as Prometheus reads it."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from experiments.serving.scheduler import Scheduler

_COUNTERS = {
    "requests": "Requests that were let into the queue.",
    "refused": "Requests for which the queue had no room.",
    "cancelled": "Texts that nobody waited for any more.",
    "failed": "Texts that ended with an error.",
    "steps": "Steps of the model, some tokens of every text each.",
    "step_seconds": "Time that they took.",
    "prompt_tokens": "Tokens of prompts.",
    "generated_tokens": "Tokens that were generated.",
}


class _Scheduler(Collector):
    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        """Gives the counts of this moment."""
        for name, meaning in _COUNTERS.items():
            value = getattr(self._scheduler.counts, name)
            yield CounterMetricFamily(f"retro_{name}", meaning, value=value)
        for name, meaning, value in (
            ("waiting_texts", "Texts in the queue.", self._scheduler.num_waiting),
            ("active_texts", "Texts under way.", self._scheduler.num_under_way),
        ):
            yield GaugeMetricFamily(f"retro_{name}", meaning, value=value)


def text(scheduler: Scheduler) -> tuple[bytes, str]:
    """The counts, and the media type of their form."""
    registry = CollectorRegistry()
    registry.register(_Scheduler(scheduler))
    return exposition.generate_latest(registry), exposition.CONTENT_TYPE_LATEST
