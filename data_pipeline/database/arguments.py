"""Guards of what users hand to a database: what is no such thing is refused by name.

A text where a list of texts belongs would be taken for its letters, a number that is none
for another one.
"""

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer


def check_list(values: object, name: str) -> None:
    """Refuses one text, one record or nothing where several belong."""
    is_one = isinstance(values, str | bytes | Mapping)
    if is_one or not isinstance(values, Iterable):
        give = f": give [{values!r:.60}]" if is_one else ""
        raise ValueError(f"{name} must be a list, are {values!r:.60}{give}")


def check_strings(values: Collection[str], name: str) -> None:
    """Refuses what is no list of strings, as ids of documents are."""
    check_list(values, name)
    others = [value for value in values if not isinstance(value, str)]
    if others:
        raise ValueError(f"{name} must be strings, one is {others[0]!r:.60}")


def check_queries(texts: Sequence[str]) -> None:
    """Refuses what is no list of texts to search for; as the service does."""
    check_strings(texts, "texts")
    for number, text in enumerate(texts):
        if not text or "\0" in text:
            problem = "holds a NUL character" if text else "is empty"
            raise ValueError(f"texts[{number}] {problem}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"texts[{number}] is no Unicode text ({error})") from error


def whole(value: Any, name: str) -> int:
    """The value as an int; ValueError if it is no whole number, as a flag is none."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"{name} must be a whole number, is {value!r:.60}")


def positive(value: Any, name: str) -> int:
    """The value as an int; ValueError if it is no whole number from 1 on."""
    number = whole(value, name)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, is {number}")
    return number


def tokens(
    tokens_QM: Integer[np.ndarray, "Q M"], vocab_size: int
) -> Integer[np.ndarray, "Q M"]:
    """The token ids as an array; ValueError if they are no rows of ids there are."""
    ids = np.asarray(tokens_QM)
    if ids.ndim != 2 or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
        raise ValueError(
            f"tokens_QM must be rows of token ids, are {ids.dtype} {ids.shape}"
        )
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"tokens_QM must lie in 0..{vocab_size - 1}")
    return ids
