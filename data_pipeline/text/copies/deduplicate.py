"""Splits documents and removes copies, so that held-out text is really unseen.

Called by the database build before anything is tokenised. The one thing to know: the
split is a function of a document's text, a training document is dropped if it is nearly a
held-out one, and where one of two is nearly a part of the other the smaller is dropped.

What is costly of a document, reading it, its grams and its signature, needs that document
alone; what remains is chosen from ids, checksums, grams and signatures.

Letters here: G grams of a text, J grams of another, P permutations, N words of a text.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt32

from data_pipeline.text.copies.containment import GramsOf, HeldOut
from data_pipeline.text.words import words_in_blocks

if TYPE_CHECKING:
    from datasketch import LeanMinHash, MinHash

SPLITS = ("train", "validation", "test")

NGRAM = 13  # words; section 2.6 of the paper, as the threshold
THRESHOLD = 0.8
_NUM_PERMUTATIONS = 128
_SEED, _SCHEME = 1, "affine32"  # of the permutations
_MISS_PROBABILITY = 1e-4
_MAX_CACHED_WORDS = 1_000_000
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no word of a gram is multiplied away
_BATCH_GRAMS = 8192


@dataclass(frozen=True, slots=True)
class Kept:
    """Numbers of the documents that remain in each split, and how many were dropped.

    Attributes:
      numbers: split name -> numbers of documents, sorted by the documents' ids; every
        name of `SPLITS` is there.
      exact_duplicates: documents dropped because a split had their text already.
      near_duplicates: training documents dropped as near copies of held-out ones.
      contained: documents dropped because one on the other side holds nearly all of them.
    """

    numbers: dict[str, list[int]]
    exact_duplicates: int
    near_duplicates: int
    contained: int


def choose(
    ids: Sequence[str],
    digests: Sequence[bytes],
    signature_of: Callable[[int], UInt32[np.ndarray, " P"]],
    grams_of: GramsOf,
    validation_share: float,
    test_share: float,
) -> Kept:
    """Splits documents and drops copies; the order they come in does not matter.

    Where no document falls into the test split one is put there, if there are two and
    `test_share` is not 0: the one that would be the next as the share grows.

    Args:
      ids: of all documents, unique; a document's number is its place here.
      digests: `digest` of each text.
      signature_of: the `Signer`'s signature of a document by number.
      grams_of: its grams, as `Signer.grams` gives them.
      validation_share: share of documents held out for validation, 0 to 1.
      test_share: share of documents held out for test, 0 to 1.
    Raises:
      ValueError: if a share is out of range.
    Source: section 2.6 of the paper; the containment is ours, after GPT-3's held-out text
      (Brown et al. 2020, appendix C), from which what stands in training text is removed.
    """
    exact = exact_duplicates(ids, digests)
    numbers: dict[str, list[int]] = {name: [] for name in SPLITS}
    for number in sorted(range(len(ids)), key=ids.__getitem__):
        if number not in exact:
            split = split_of(digests[number], validation_share, test_share)
            numbers[split].append(number)
    if test_share > 0 and not numbers["test"] and len(numbers["train"]) > 1:
        last = max(numbers["train"], key=lambda number: _position(digests[number]))
        numbers["train"].remove(last)
        numbers["test"].append(last)
    near = near_duplicates(numbers["train"], _held_out(numbers), signature_of, grams_of)
    numbers = _without(numbers, near)
    if not _held_out(numbers):  # no grams were kept
        return Kept(numbers, len(exact), len(near), 0)
    within = HeldOut(_held_out(numbers), grams_of).within(numbers["train"], THRESHOLD)
    numbers = _without(numbers, within)
    of_held_out = HeldOut(_held_out(numbers), grams_of).containing(
        numbers["train"], THRESHOLD
    )
    numbers = _without(numbers, of_held_out)
    return Kept(numbers, len(exact), len(near), len(within) + len(of_held_out))


def _held_out(numbers: Mapping[str, list[int]]) -> list[int]:
    return numbers["validation"] + numbers["test"]


def _without(
    numbers: Mapping[str, list[int]], dropped: set[int]
) -> dict[str, list[int]]:
    return {
        split: [number for number in of_split if number not in dropped]
        for split, of_split in numbers.items()
    }


def digest(text: str) -> bytes:
    """The sha256 of a text's UTF-8, which equal texts share and no others."""
    return hashlib.sha256(text.encode()).digest()


def split_of(digest: bytes, validation_share: float, test_share: float) -> str:
    """Says which split a document belongs to: "train", "validation" or "test".

    A function of the text's digest alone: exact copies land together, and neither
    order nor other documents matter. Raising a share moves documents only into it.

    Raises:
      ValueError: if a share is negative or they leave nothing to train on.
    Source: ours; the paper splits MassiveText at random.
    """
    if min(validation_share, test_share) < 0 or validation_share + test_share >= 1:
        raise ValueError(
            f"validation_share={validation_share}, test_share={test_share}: must not be"
            " negative, and their sum must be below 1"
        )
    position = _position(digest)
    if position < validation_share:
        return "validation"
    # Test grows down from 1, so neither share moves the other's documents.
    return "test" if position >= 1 - test_share else "train"


def _position(digest: bytes) -> float:
    """Where a text falls in [0, 1)."""
    return int.from_bytes(digest[:8], "big") / 2**64


def exact_duplicates(ids: Sequence[str], digests: Sequence[bytes]) -> set[int]:
    """Finds documents whose text another one has; of each text the least id is kept.

    Returns:
      The numbers to drop. Copies of one text always share a split (`split_of`), so this
      serves each split and all of them at once.
    """
    least: dict[bytes, int] = {}
    drop = set()
    for number, of_text in enumerate(digests):
        known = least.setdefault(of_text, number)
        if known != number:
            least[of_text], worse = sorted((known, number), key=ids.__getitem__)
            drop.add(worse)
    return drop


def near_duplicates(
    train: Iterable[int],
    held_out: Sequence[int],
    signature_of: Callable[[int], UInt32[np.ndarray, " P"]],
    grams_of: GramsOf,
    *,
    threshold: float = THRESHOLD,
) -> set[int]:
    """Finds training documents that nearly equal a validation or test document.

    Similarity is the Jaccard index of the sets of grams (`gram_hashes`). MinHash proposes,
    the exact index decides: nothing below the threshold is dropped, and a pair at the
    threshold is missed with probability below 1e-4 (5e-5 at 0.8, 1e-9 at 0.9).

    Args:
      train: numbers of training documents.
      held_out: numbers of validation and test documents.
      signature_of, grams_of: a document's, by one `Signer`.
      threshold: least similarity of a duplicate, above 0, at most 1.
    Returns:
      The numbers of the training documents to drop.
    Raises:
      ValueError: if `threshold` is out of range.
    Source: section 2.6 of the paper (13-grams, 0.8, MinHash); the exact check is ours.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: must be above 0 and at most 1")
    if not held_out:
        return set()
    from datasketch import MinHashLSH

    index = MinHashLSH(num_perm=_NUM_PERMUTATIONS, params=_bands(threshold))
    for number in held_out:
        index.insert(number, _minhash(signature_of(number)), check_duplication=False)
    return {
        number
        for number in train
        if any(
            _similar(grams_of(number), grams_of(other), threshold)
            for other in index.query(_minhash(signature_of(number)))
        )
    }


class Signer:
    """Gives texts signatures: of two, as many numbers agree as their n-grams do."""

    def __init__(self, ngram: int = NGRAM, seed: int = _SEED):
        """Takes the words of a gram and the seed of the MinHash permutations."""
        from datasketch import MinHash

        if ngram < 1:
            raise ValueError(f"ngram={ngram}: must be at least 1")
        self._ngram, self._word_hashes = ngram, _WordHashes()
        # The grams are hashed already; datasketch mixes them once more by itself.
        self._empty = MinHash(_NUM_PERMUTATIONS, seed, hashfunc=int, scheme=_SCHEME)

    def __call__(self, text: str) -> UInt32[np.ndarray, " P"]:
        """The signature of a text."""
        return self.signature(self.grams(text))

    def grams(self, text: str) -> UInt32[np.ndarray, " G"]:
        """The grams of a text, by a cache of words that all texts share."""
        return gram_hashes(text, self._ngram, self._word_hashes)

    def signature(self, grams_G: UInt32[np.ndarray, " G"]) -> UInt32[np.ndarray, " P"]:
        """The signature of a text by its grams: its MinHash's values."""
        sketch: MinHash = self._empty.copy()
        for batch in _batches(grams_G):
            sketch.update_batch(batch)
        return sketch.hashvalues


def _minhash(signature_P: UInt32[np.ndarray, " P"]) -> "LeanMinHash":
    from datasketch import LeanMinHash

    return LeanMinHash(seed=_SEED, hashvalues=signature_P, scheme=_SCHEME)


def jaccard(
    grams_G: UInt32[np.ndarray, " G"], others_J: UInt32[np.ndarray, " J"]
) -> float:
    """Gives the Jaccard index of two sets of gram hashes (`gram_hashes`)."""
    both = np.intersect1d(grams_G, others_J, assume_unique=True).size
    return both / (grams_G.size + others_J.size - both)


def gram_hashes(
    text: str, ngram: int, word_hashes: dict[str, int] | None = None
) -> UInt32[np.ndarray, " G"]:
    """Gives the sorted set of hashes of the n-grams of words of a text.

    A hash has 32 bits: of a million grams about a hundred share one.

    Args:
      text: any text; a text with fewer words than `ngram` is one gram, and a text with
        no word at all is the gram of its characters.
      ngram: words of a gram (`words.words`).
      word_hashes: a cache that callers share between texts.
    """
    hash_of = (_WordHashes() if word_hashes is None else word_hashes).__getitem__
    blocks = [
        np.fromiter(map(hash_of, words), np.uint64, len(words))
        for words in words_in_blocks(text)
    ]
    hashes_N = np.concatenate([np.zeros(0, np.uint64), *blocks])
    if not hashes_N.size:
        hashes_N = np.array([hash_of(text)], np.uint64)
    length = min(ngram, hashes_N.size)
    count = hashes_N.size - length + 1
    grams_G = np.zeros(count, np.uint64)
    for offset in range(length):
        grams_G *= np.uint64(_MULTIPLIER)
        grams_G += hashes_N[offset : offset + count]
    # The high half: in the low half of a product fewer bits have been mixed.
    return np.unique((grams_G >> np.uint64(32)).astype(np.uint32))


class _WordHashes(dict[str, int]):
    """Word -> 64-bit hash, computed when first asked for; forgets when it grows large."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MAX_CACHED_WORDS:
            self.clear()
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "big")
        return value


def _batches(values_G: np.ndarray) -> Iterator[list[int]]:
    """Small enough that values times permutations stay in the cache."""
    for start in range(0, values_G.size, _BATCH_GRAMS):
        yield values_G[start : start + _BATCH_GRAMS].tolist()


def _bands(threshold: float) -> tuple[int, int]:
    """Most selective (bands, rows of a band) that miss few pairs at the threshold."""
    for rows in range(_NUM_PERMUTATIONS // 2, 1, -1):
        bands = _NUM_PERMUTATIONS // rows
        if (1 - threshold**rows) ** bands <= _MISS_PROBABILITY:
            return bands, rows
    return _NUM_PERMUTATIONS, 1


def _similar(grams_G: np.ndarray, others_J: np.ndarray, threshold: float) -> bool:
    small, large = sorted((grams_G.size, others_J.size))
    # The sizes alone bound the similarity, and most candidates end here.
    return small / large >= threshold and jaccard(grams_G, others_J) >= threshold
