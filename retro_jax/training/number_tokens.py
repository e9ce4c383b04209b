"""Numbers of a text as tokens, and the tokens of other numbers."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

_DIGITS = b"0123456789"


class NumberTokens:
    """The tokens that hold digits, and which of them hold others in the same places.

    Source: ours. Texts whose facts are exchanged together with what they are read from:
    Longpre et al. 2021 (arXiv 2109.05052).
    """

    def __init__(self, bytes_of_tokens: Sequence[bytes]):
        """Begins with the bytes of each token of a vocabulary, by its id."""
        self._ids_V = np.arange(len(bytes_of_tokens), dtype=np.int32)
        # Several tokens may have the same bytes: a digit, and the byte that spells it.
        self._with_digits: dict[bytes, list[int]] = {}
        for token, spelt in enumerate(bytes_of_tokens):
            if any(digit in spelt for digit in _DIGITS):
                self._with_digits.setdefault(spelt, []).append(token)

    def exchanged(self, rng: np.random.Generator) -> Int32[np.ndarray, " V"]:
        """Gives the token in place of each, once every digit from 0 to 9 has become another.

        The same digit becomes the same everywhere. A token stays where the vocabulary has
        none for its new digits, and so does one without digits.
        """
        around = rng.permutation(10)
        # Each digit becomes the next one on a random circle: so none stays what it is.
        turned = bytes.maketrans(
            bytes(_DIGITS[digit] for digit in around),
            bytes(_DIGITS[digit] for digit in np.roll(around, -1)),
        )
        token_V = self._ids_V.copy()
        for spelt, tokens in self._with_digits.items():
            others = self._with_digits.get(spelt.translate(turned), ())
            for token, other in zip(tokens, others, strict=False):
                token_V[token] = other
        return token_V
