"""Splits documents and removes copies, so that held-out text is really unseen.

Called by the database build before anything is tokenised. The one thing to know: the
split is a function of a document's text, and a training document is dropped if it is
nearly a held-out one, never the other way round.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt64

from data_pipeline.documents import Document
from data_pipeline.spool import Spool, Spooled

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

SPLITS = ("train", "validation", "test")

_NUM_PERMUTATIONS = 128
_MISS_PROBABILITY = 1e-4
_WORD = re.compile(r"\w+")
_MAX_CACHED_WORDS = 1_000_000
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no word of a gram is multiplied away
_BATCH_GRAMS = 8192


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """Documents that remain in each split, sorted by id, and what was dropped.

    Attributes:
      documents: split name -> documents; every name of `SPLITS` is there.
      exact_duplicates: documents dropped because a split had their text already.
      near_duplicates: training documents dropped as near copies of held-out ones.
    """

    documents: dict[str, Spooled]
    exact_duplicates: int
    near_duplicates: int


def deduplicate(
    documents: Iterable[Document],
    spool: Spool,
    validation_share: float,
    test_share: float,
    *,
    threshold: float = 0.8,
    ngram: int = 13,
    seed: int = 1,
) -> Deduplicated:
    """Splits documents and drops copies; the order they come in does not matter.

    Args:
      documents: with unique ids. Read once; of each the id and a checksum is held, and
        of a held-out one the hashes of its n-grams.
      spool: empty; keeps the texts, also for what is returned.
      validation_share: share of documents held out for validation, 0 to 1.
      test_share: share of documents held out for test, 0 to 1.
      threshold: see `near_duplicates`; also `ngram` and `seed`.
    Raises:
      ValueError: if a share, the threshold or the n-gram length is out of range.
    Source: section 2.6 of the paper.
    """
    ids: list[str] = []
    splits: list[str] = []

    def spooled() -> Iterator[Document]:
        for document in documents:
            spool.append(document)
            ids.append(document.id)
            splits.append(split_of(document.text, validation_share, test_share))
            yield document

    exact = exact_duplicates(spooled())
    numbers: dict[str, list[int]] = {name: [] for name in SPLITS}
    for number in sorted(range(len(ids)), key=ids.__getitem__):
        if ids[number] not in exact:
            numbers[splits[number]].append(number)
    kept = {name: Spooled(spool, of_split) for name, of_split in numbers.items()}
    held_out = itertools.chain(kept["validation"], kept["test"])
    near = near_duplicates(
        kept["train"], held_out, threshold=threshold, ngram=ngram, seed=seed
    )
    remaining = [number for number in numbers["train"] if ids[number] not in near]
    kept["train"] = Spooled(spool, remaining)
    return Deduplicated(kept, len(exact), len(near))


def split_of(text: str, validation_share: float, test_share: float) -> str:
    """Says which split a document belongs to: "train", "validation" or "test".

    A function of the sha256 of the text alone: exact copies land together, and neither
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
    digest = hashlib.sha256(text.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < validation_share:
        return "validation"
    # Test grows down from 1, so neither share moves the other's documents.
    return "test" if position >= 1 - test_share else "train"


def exact_duplicates(documents: Iterable[Document]) -> set[str]:
    """Finds documents whose text another one has; of each text the least id is kept.

    Returns:
      The ids to drop. Copies of one text always share a split (`split_of`), so this
      serves each split and all of them at once.
    """
    least: dict[bytes, str] = {}
    drop = set()
    for document in documents:
        digest = hashlib.sha256(document.text.encode()).digest()
        known = least.setdefault(digest, document.id)
        if known != document.id:
            least[digest], worse = sorted((known, document.id))
            drop.add(worse)
    return drop


def near_duplicates(
    train: Iterable[Document],
    held_out: Iterable[Document],
    *,
    threshold: float = 0.8,
    ngram: int = 13,
    seed: int = 1,
) -> set[str]:
    """Finds training documents that nearly equal a validation or test document.

    Similarity is the Jaccard index of the sets of n-grams of lower-cased words (a
    document of fewer words is one gram). MinHash proposes, exact Jaccard of 64-bit gram
    hashes decides: nothing below the threshold is dropped, and a pair at the threshold
    is missed with probability below 1e-4 (5e-5 at 0.8, 1e-9 at 0.9).

    Args:
      train: read once as a stream; memory grows with `held_out` only.
      held_out: validation and test documents.
      threshold: least similarity of a duplicate, above 0, at most 1.
      ngram: words of a gram, at least 1.
      seed: of the MinHash permutations.
    Returns:
      The ids of the training documents to drop.
    Raises:
      ValueError: if `threshold` or `ngram` is out of range.
    Source: section 2.6 of the paper (13-grams, 0.8, MinHash); the exact check is ours.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: must be above 0 and at most 1")
    if ngram < 1:
        raise ValueError(f"ngram={ngram}: must be at least 1")
    word_hashes = _WordHashes()
    sketcher = _empty_sketch(seed)
    held_grams = [gram_hashes(d.text, ngram, word_hashes) for d in held_out]
    index = _index(held_grams, sketcher, threshold)
    drop = set()
    for document in train:
        grams_G = gram_hashes(document.text, ngram, word_hashes)
        found = index.query(_sketch(grams_G, sketcher))
        if any(_similar(grams_G, held_grams[i], threshold) for i in found):
            drop.add(document.id)
    return drop


def jaccard(
    grams_G: UInt64[np.ndarray, " G"], others_J: UInt64[np.ndarray, " J"]
) -> float:
    """Gives the Jaccard index of two sets of gram hashes (`gram_hashes`)."""
    both = np.intersect1d(grams_G, others_J, assume_unique=True).size
    return both / (grams_G.size + others_J.size - both)


def gram_hashes(
    text: str, ngram: int, word_hashes: dict[str, int] | None = None
) -> UInt64[np.ndarray, " G"]:
    """Gives the sorted set of hashes of the n-grams of lower-cased words of a text.

    Args:
      text: any text; a text with fewer words than `ngram` is one gram, and a text with
        no word at all is the gram of its characters.
      ngram: words of a gram.
      word_hashes: a cache that callers share between texts.
    """
    word_hashes = _WordHashes() if word_hashes is None else word_hashes
    words = _WORD.findall(text.lower()) or [text]
    hashes_N = np.array([word_hashes[word] for word in words], np.uint64)
    length = min(ngram, hashes_N.size)
    count = hashes_N.size - length + 1
    grams_G = np.zeros(count, np.uint64)
    for offset in range(length):
        grams_G *= np.uint64(_MULTIPLIER)
        grams_G += hashes_N[offset : offset + count]
    return np.unique(grams_G)


class _WordHashes(dict[str, int]):
    """Word -> 64-bit hash, computed when first asked for; forgets when it grows large."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MAX_CACHED_WORDS:
            self.clear()
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "big")
        return value


def _empty_sketch(seed: int) -> "MinHash":
    from datasketch import MinHash

    # The grams are hashed already; datasketch mixes them once more by itself.
    return MinHash(_NUM_PERMUTATIONS, seed, hashfunc=int)


def _sketch(grams_G: UInt64[np.ndarray, " G"], empty: "MinHash") -> "MinHash":
    sketch = empty.copy()
    # The high half: in the low half of a product fewer bits have been mixed.
    for batch in _batches(grams_G >> np.uint64(32)):
        sketch.update_batch(batch)
    return sketch


def _batches(values_G: np.ndarray) -> Iterator[list[int]]:
    """Small enough that values times permutations stay in the cache."""
    for start in range(0, values_G.size, _BATCH_GRAMS):
        yield values_G[start : start + _BATCH_GRAMS].tolist()


def _index(
    held_grams: list[np.ndarray], empty: "MinHash", threshold: float
) -> "MinHashLSH":
    from datasketch import MinHashLSH

    index = MinHashLSH(num_perm=_NUM_PERMUTATIONS, params=_bands(threshold))
    for key, grams_G in enumerate(held_grams):
        index.insert(key, _sketch(grams_G, empty), check_duplication=False)
    return index


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
