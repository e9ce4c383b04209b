"""A server that can't keep up takes fewer requests, and more again when it can."""

import contextlib

import grpc
import pytest

from data_pipeline.service.server.admission import Admission, InFlight, Refused
from data_pipeline.service.server.observability import Metrics


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def limit(metrics):
    return metrics.value("retro_in_flight_limit", kind="texts")


def request(admission, clock, took_s, timeout_s=2.0):
    with admission.place(timeout_s):
        clock.now_s += took_s


def test_no_more_than_the_most(clock):
    admission = Admission(1, 2, Metrics(), "texts", now_s=clock)
    with contextlib.ExitStack() as places:
        for _ in range(3):
            places.enter_context(admission.place(2.0))
        with pytest.raises(
            Refused, match="3 requests of texts are under way"
        ) as refused:
            places.enter_context(admission.place(2.0))
        assert refused.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    request(admission, clock, 0.1)


def test_late_requests_lower_the_limit_and_others_raise_it(clock):
    metrics = Metrics()
    admission = Admission(1, 63, metrics, "texts", now_s=clock)
    assert limit(metrics) == 64
    request(admission, clock, 1.1)
    assert limit(metrics) == 4
    for _ in range(3000):
        request(admission, clock, 0.9)
    assert limit(metrics) == 64


def test_the_limit_falls_to_what_is_answered_in_half_of_the_time(clock):
    metrics = Metrics()
    admission = Admission(1, 63, metrics, "texts", now_s=clock)
    with contextlib.suppress(TimeoutError), admission.place(2.0):  # waits its time out
        for _ in range(32):
            request(admission, clock, 1 / 16)
        raise TimeoutError
    assert limit(metrics) == 16


def test_requests_of_one_jam_lower_it_once(clock):
    metrics = Metrics()
    admission = Admission(1, 63, metrics, "texts", now_s=clock)
    with contextlib.ExitStack() as places:
        for _ in range(30):
            places.enter_context(admission.place(2.0))
        clock.now_s += 1.5
        places.close()
        lowered = limit(metrics)
    assert lowered == 4
    for _ in range(30):
        request(admission, clock, 0.1)
    with contextlib.ExitStack() as places:
        places.enter_context(admission.place(2.0))
        clock.now_s += 1.5
    assert limit(metrics) < 8


@pytest.mark.parametrize("timeout_s", [0.001, 0.09])
def test_a_caller_in_a_hurry_lowers_nothing(clock, timeout_s):
    metrics = Metrics()
    admission = Admission(1, 63, metrics, "texts", now_s=clock)
    for _ in range(20):
        request(admission, clock, 1.0, timeout_s)
    assert limit(metrics) == 64


def test_a_request_that_fails_late_counts_too(clock):
    metrics = Metrics()
    admission = Admission(1, 63, metrics, "texts", now_s=clock)
    with pytest.raises(TimeoutError), admission.place(2.0):
        clock.now_s += 2.0
        raise TimeoutError
    assert limit(metrics) == 4
    assert metrics.value("retro_in_flight", kind="texts") == 0


def test_an_overloaded_server_goes_on_answering(clock):
    """Five times what a server of 10 requests a second can do, for a minute."""
    in_time = _in_time(Admission(1, 63, Metrics(), "texts", now_s=clock), clock)
    assert in_time > 0.9 * 10 * 60  # with all 64 places taken they take 6 s: 20 or so


def _in_time(admission: Admission, clock: Clock) -> int:
    """Requests that are answered within their 2 s, first come first served."""
    queue, in_time, free_at_s = [], 0, 0.0
    for number in range(50 * 60):
        now_s = number / 50
        while queue and queue[0][0] <= now_s:
            clock.now_s, asked_s, place = queue.pop(0)
            place.close()
            in_time += clock.now_s - asked_s <= 2.0
        clock.now_s = now_s
        place = contextlib.ExitStack()
        with contextlib.suppress(Refused):
            place.enter_context(admission.place(2.0))
            free_at_s = max(free_at_s, now_s) + 0.1
            queue.append((free_at_s, now_s, place))
    return in_time


def test_bytes_in_hand_are_bounded_but_small_ones_always_taken():
    metrics, mb = Metrics(), 1 << 20
    in_flight = InFlight(10 * mb, metrics)
    in_flight.take(6 * mb)
    with pytest.raises(
        Refused, match=f"{6 * mb} bytes .*, {5 * mb} more than fit"
    ) as no:
        in_flight.take(5 * mb)
    assert no.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    in_flight.take(4 * mb)
    in_flight.take(100)
    in_flight.give_back(6 * mb)
    assert metrics.value("retro_in_flight_bytes") == 4 * mb + 100
