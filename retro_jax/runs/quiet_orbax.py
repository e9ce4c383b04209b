"""Keeps quiet what Orbax leaves behind when one of its reads or writes fails.

The others of the same restore or save are neither awaited nor cancelled: their loop is
closed over them. Python finds them when it collects garbage, up to minutes later, and prints a
traceback for each, beside the one line that said what is damaged.
"""

import dataclasses
import logging
import sys
from collections.abc import Callable
from typing import Any


def silence() -> None:
    """Silences Orbax's leftovers in this process from now on, and nothing else.

    May be called again: then what was put in the hook's place meanwhile is kept as well.
    """
    # A filter is there once, however often it is added.
    logging.getLogger("asyncio").addFilter(_is_not_of_orbax)
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


@dataclasses.dataclass(frozen=True)
class _Hook:
    """Hands on to another hook what is not Orbax's."""

    other: Callable[[Any], object]

    def __call__(self, unraisable) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        is_of_orbax = code is not None and "orbax" in code.co_filename
        if not is_of_orbax and str(unraisable.exc_value) != "Event loop is closed":
            self.other(unraisable)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.getMessage()
