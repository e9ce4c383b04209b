"""A text as it grows: what of it can be shown already, and whether it has ended.

A character that is split over tokens is shown when it is whole, and what may be the
beginning of a stop string when it is known to be none. Tokens are decoded one by one: what
a token says does not depend on what else is decoded.
"""

import bisect
import codecs
from collections.abc import Iterable, Sequence

from data_pipeline.text.tokenizer import Tokenizer


class Transcript:
    """The text of tokens, in characters.

    Attributes:
        text: all that may be shown.
        starts: where in the text each token begins.
        stopped: whether a stop string has ended it.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        """Begins with nothing; `stops` are the texts that end it and are not shown."""
        self._tokenizer, self._stops = tokenizer, stops
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoded, self._searched = "", 0
        self.text, self.starts = "", list[int]()
        self.stopped = False

    def echo(self, tokens: Iterable[int]) -> None:
        """Adds what stands in the prompt: it is shown whole, and no stop string ends it."""
        self._decode(tokens)
        self.text = self._decoded
        self._searched = len(self._decoded)

    def add(self, tokens: Iterable[int], *, is_last: bool = False) -> str:
        """Adds tokens; gives what can be shown since.

        Args:
            is_last: nothing comes after them; half a character is then left out.
        """
        if self.stopped:
            return ""
        self._decode(tokens)
        shown = len(self.text)
        end = self._first_stop()
        if end is not None:
            self.stopped = True
        else:
            end = len(self._decoded)
            self._searched = max(self._searched, end - self._longest + 1)
            if not is_last:
                end -= self._num_held_back()
        self.text = self._decoded[:end]
        return self.text[shown:]

    @property
    def num_decoded(self) -> int:
        """Characters of all tokens so far, those that are not shown yet included."""
        return len(self._decoded)

    @property
    def num_shown_tokens(self) -> int:
        """Tokens that begin before the end of what is shown."""
        return bisect.bisect_left(self.starts, len(self.text))

    @property
    def num_tokens(self) -> int:
        """Tokens of the text: up to its end, or to the stop string that ended it."""
        return self.num_shown_tokens if self.stopped else len(self.starts)

    @property
    def _longest(self) -> int:
        return max(map(len, self._stops), default=1)

    def _decode(self, tokens: Iterable[int]) -> None:
        parts = []
        length = len(self._decoded)
        for token in tokens:
            self.starts.append(length)
            part = self._decoder.decode(self._tokenizer.decode_bytes([int(token)]))
            parts.append(part)
            length += len(part)
        self._decoded += "".join(parts)

    def _first_stop(self) -> int | None:
        """Where the stop string begins that is whole first, however the text came."""
        found = [
            (place + len(stop), place)
            for stop in self._stops
            if (place := self._decoded.find(stop, self._searched)) >= 0
        ]
        return min(found)[1] if found else None

    def _num_held_back(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        tail = self._decoded[self._searched :]
        for size in range(min(self._longest - 1, len(tail)), 0, -1):
            if any(stop.startswith(tail[-size:]) for stop in self._stops):
                return size
        return 0


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What stands for a token in lists: its text, else its bytes or its name.

    Tokens with other bytes have other names.
    """
    content = tokenizer.decode_bytes([token])
    if not content:
        names = {number: name for name, number in tokenizer.special_ids.items()}
        return names.get(token, f"<token {token}>")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
