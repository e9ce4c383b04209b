"""When a server that fails is left alone, and when it is tried again.

A circuit breaker (Nygard, Release It!, 2007): after three failures in a row the circuit is
open, and nobody waits for the server any more. After a pause one request is sent to it
beside the others, for which nobody waits either: if it is answered the circuit is closed,
if not the pause is doubled.
"""

import random

_IN_A_ROW = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


class Breaker:
    """What is known of one server's failures. Times are of one clock, in seconds."""

    def __init__(self) -> None:
        """Closed: nothing has failed yet."""
        self.is_open = False
        self.is_slow = False  # open, but only because others were faster
        self.retry_at_s = 0.0
        self.in_a_row = 0
        self.reason = ""
        self._pause_s = _FIRST_PAUSE_S
        self._is_tried = False

    def answered(self) -> bool:
        """The server works; whether that closes the circuit."""
        was_open = self.is_open
        self.is_open = self.is_slow = False
        self.in_a_row, self._pause_s = 0, _FIRST_PAUSE_S
        return was_open

    def failed(self, now_s: float, reason: str, *, was_slow: bool = False) -> bool:
        """The server gave no answer, or a later one than another's; whether that opens it.

        Args:
            was_slow: an answer was not waited for, since another server's came first.
        """
        self.in_a_row += 1
        if self.is_open:
            if not was_slow:
                self.is_slow, self.reason = False, reason
            return False
        self.reason = reason
        if self.in_a_row < _IN_A_ROW:
            return False
        self.is_open, self.is_slow = True, was_slow
        self._pause(now_s)
        return True

    def begin_trial(self, now_s: float) -> bool:
        """Whether the server is to be tried now; then `end_trial` has to follow."""
        if not self.is_open or self._is_tried or now_s < self.retry_at_s:
            return False
        self._is_tried = True
        return True

    def end_trial(self, now_s: float) -> None:
        """After `answered` or `failed`: what has failed again is left alone for longer."""
        self._is_tried = False
        if self.is_open:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._pause(now_s)

    def _pause(self, now_s: float) -> None:
        # Drawn by lot, so that routers do not all try at once.
        self.retry_at_s = now_s + self._pause_s * random.uniform(0.75, 1.25)
