"""A circuit breaker: a server that fails is left alone, and tried again after a pause.

Source: Nygard, Release It!, 2007. After three failures in a row the circuit is open, and
nobody waits for the server any more. After a pause one request is sent to it
beside the others, for which nobody waits either: if it is answered the circuit is closed,
if not the pause is doubled.
"""

import enum
import random

_IN_A_ROW = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


class Circuit(enum.Enum):
    """Whether requests go to a server."""

    CLOSED = "asked like every other"
    LAST = "asked after all others, which were faster again and again"
    OPEN = "not asked, but by a trial when the pause is over"


class Breaker:
    """The failures of one server and its circuit. Times are of one clock, in seconds."""

    def __init__(self) -> None:
        """Begins closed: nothing has failed yet."""
        self.circuit = Circuit.CLOSED
        self.retry_at_s = 0.0
        self.in_a_row = 0
        self.reason = ""
        self._pause_s = _FIRST_PAUSE_S
        self._is_tried = False

    def record_answer(self) -> bool:
        """Closes the circuit; gives whether it was not closed before."""
        was_closed = self.circuit is Circuit.CLOSED
        self.circuit = Circuit.CLOSED
        self.in_a_row, self._pause_s = 0, _FIRST_PAUSE_S
        return not was_closed

    def record_failure(
        self, now_s: float, reason: str, *, was_slow: bool = False
    ) -> bool:
        """Counts a failure; gives whether the circuit is closed no more because of it.

        Args:
            was_slow: an answer was not waited for, since another server's came first.
        """
        self.in_a_row += 1
        if self.circuit is not Circuit.CLOSED:
            # Being slow says nothing new; a failure is worse than having been slow.
            if not was_slow:
                self.circuit, self.reason = Circuit.OPEN, reason
            return False
        self.reason = reason
        if self.in_a_row < _IN_A_ROW:
            return False
        # A slow server is still better than none: it stays the last resort.
        self.circuit = Circuit.LAST if was_slow else Circuit.OPEN
        self._begin_pause(now_s)
        return True

    def begin_trial(self, now_s: float) -> bool:
        """Begins a trial if one is due, which `end_trial` must end; gives whether it did."""
        is_due = self.circuit is not Circuit.CLOSED and now_s >= self.retry_at_s
        if not is_due or self._is_tried:
            return False
        self._is_tried = True
        return True

    def end_trial(self, now_s: float) -> None:
        """Ends a trial whose outcome is recorded; after a failure the next pause is longer."""
        self._is_tried = False
        if self.circuit is not Circuit.CLOSED:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._begin_pause(now_s)

    def _begin_pause(self, now_s: float) -> None:
        # Drawn by lot, so that routers do not all try at once.
        self.retry_at_s = now_s + self._pause_s * random.uniform(0.75, 1.25)
