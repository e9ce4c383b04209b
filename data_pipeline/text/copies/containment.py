"""Documents that stand in others: of two of which one is nearly a part of the other.

The Jaccard index of a page and of a book that quotes it whole is near zero, and the page is
not unseen for that. The containment of a text in another is the share of its grams that
the other has too.

Letters here: G grams of a text, J grams of the held-out texts, each once.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, UInt32

GramsOf = Callable[[int], UInt32[np.ndarray, " G"]]


class HeldOut:
    """The grams of the held-out documents, and which documents have each."""

    def __init__(self, numbers: Sequence[int], grams_of: GramsOf):
        """Takes the documents' numbers and what gives the sorted grams of a number."""
        self._numbers, self._grams_of = np.array(numbers, np.int64), grams_of
        grams = [grams_of(number) for number in numbers]
        self._sizes = np.array([len(of_one) for of_one in grams], np.int64)
        joined = np.concatenate([np.zeros(0, np.uint32), *grams])
        order = np.argsort(joined, kind="stable")
        self._owners = np.repeat(np.arange(len(grams)), self._sizes)[order]
        self._grams_J, self._starts_J, self._counts_J = np.unique(
            joined[order], return_index=True, return_counts=True
        )

    def within(self, train: Sequence[int], threshold: float) -> set[int]:
        """Held-out documents that a training document contains.

        Args:
            train: numbers of training documents.
            threshold: least share of a document's grams that one other document has.
        Returns:
            Numbers of the held-out documents.
        """
        found: set[int] = set()
        is_rare = self._rarest(threshold)
        for number in train:
            grams_G = self._grams_of(number)
            # A license's words stand everywhere: by them every document would be a candidate.
            candidates = {
                owner
                for place in self._places(grams_G).tolist()
                for owner in self._owners_of(place, is_rare)
                if self._sizes[owner] <= len(grams_G)
            }
            found |= {
                owner
                for owner in candidates - found
                if _contains(grams_G, self._grams(owner), threshold)
            }
        return {int(self._numbers[owner]) for owner in found}

    def containing(self, train: Sequence[int], threshold: float) -> set[int]:
        """Training documents that a held-out document contains.

        Args:
            train, threshold: as `within`.
        Returns:
            Numbers of the training documents.
        """
        return {number for number in train if self._contain(number, threshold)}

    def _contain(self, number: int, threshold: float) -> bool:
        grams_G = self._grams_of(number)
        needed = _needed(len(grams_G), threshold)
        places = self._places(grams_G)
        if len(places) < needed:  # not even all held-out documents together have them
            return False
        # Whoever contains the text has one of any so many of its grams: the rarest.
        rarest = places[np.argsort(self._counts_J[places], kind="stable")]
        tried: set[int] = set()
        for place in rarest[: len(places) - needed + 1].tolist():
            for owner in set(self._owners_of(place)) - tried:
                tried.add(owner)
                other_G = self._grams(owner)
                if len(other_G) >= len(grams_G) and _contains(
                    other_G, grams_G, threshold
                ):
                    return True
        return False

    def _rarest(self, threshold: float) -> Bool[np.ndarray, " _"]:
        """Marks of each document so many of its grams that whoever contains it has one.

        The rarest. It is called prefix filtering (Chaudhuri et al. 2006, ICDE) and exact.
        """
        counts = np.repeat(self._counts_J, self._counts_J)
        order = np.lexsort((counts, self._owners))
        ends = np.cumsum(self._sizes)
        is_rare = np.zeros(len(self._owners), bool)
        for start, end in zip(ends - self._sizes, ends, strict=True):
            size = int(end - start)
            num_marked = size - _needed(size, threshold) + 1
            is_rare[order[start : start + num_marked]] = True
        return is_rare

    def _grams(self, owner: int) -> np.ndarray:
        return self._grams_of(int(self._numbers[owner]))

    def _places(self, grams_G: np.ndarray) -> np.ndarray:
        """Places in J of those of the grams that stand there."""
        places = np.searchsorted(self._grams_J, grams_G)
        inside = places < len(self._grams_J)
        places, grams_G = places[inside], grams_G[inside]
        return places[self._grams_J[places] == grams_G]

    def _owners_of(
        self, place: int, is_taken: np.ndarray | None = None
    ) -> Iterator[int]:
        start = self._starts_J[place]
        postings = slice(start, start + self._counts_J[place])
        owners = self._owners[postings]
        yield from (owners if is_taken is None else owners[is_taken[postings]]).tolist()


def _needed(size: int, threshold: float) -> int:
    """How many of so many grams are the share that makes a part."""
    return max(1, math.ceil(threshold * size - 1e-9))


def _contains(whole_G: np.ndarray, part_G: np.ndarray, threshold: float) -> bool:
    both = np.intersect1d(whole_G, part_G, assume_unique=True)
    return len(both) >= _needed(len(part_G), threshold)
