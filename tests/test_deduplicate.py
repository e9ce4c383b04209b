"""Copies are found, near copies above the threshold too, and nothing else."""

import random
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.deduplicate import (
    deduplicate,
    exact_duplicates,
    gram_hashes,
    jaccard,
    near_duplicates,
    split_of,
)
from data_pipeline.documents import Document
from data_pipeline.spool import Spool, Spooled


def words(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(10**6)}" for _ in range(count)]


def with_similarity(text: list[str], similarity: float, seed: int) -> list[str]:
    """Replaces the end of a text so that its 13-grams have about this Jaccard index."""
    shared = round(2 * similarity / (1 + similarity) * (len(text) - 12)) + 12
    return text[:shared] + words(len(text) - shared, seed)


def brute_force(one: str, two: str, ngram: int) -> float:
    sets = []
    for text in (one, two):
        tokens = text.lower().split()
        length = min(ngram, len(tokens))
        sets.append(
            {tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)}
        )
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_planted_near_duplicates_are_dropped_and_only_those() -> None:
    held_out, train, expected = [], [], set()
    for i in range(60):
        text = words(400, seed=i)
        held_out.append(Document(f"held/{i}", " ".join(text)))
        for similarity in (0.9, 0.82, 0.78, 0.5):
            near = " ".join(with_similarity(text, similarity, seed=1000 + i))
            assert abs(brute_force(held_out[-1].text, near, 13) - similarity) < 0.01
            train.append(Document(f"train/{i}/{similarity}", near.upper()))
            if similarity > 0.8:
                expected.add(train[-1].id)
    assert near_duplicates(train, held_out) == expected
    assert near_duplicates(iter(train[::-1]), iter(held_out[::-1])) == expected
    assert near_duplicates(train, held_out, seed=7) == expected


small_texts = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=9).map(
    " ".join
)


@settings(deadline=None)
@given(
    st.lists(small_texts, max_size=8),
    st.lists(small_texts, max_size=4),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
    st.integers(1, 4),
)
def test_agrees_with_brute_force(
    train: list[str], held_out: list[str], threshold: float, ngram: int
) -> None:
    train_documents = [Document(f"t{i}", text) for i, text in enumerate(train)]
    held_documents = [Document(f"h{i}", text) for i, text in enumerate(held_out)]
    expected = {
        document.id
        for document in train_documents
        if any(brute_force(document.text, h, ngram) >= threshold for h in held_out)
    }
    found = near_duplicates(
        train_documents, held_documents, threshold=threshold, ngram=ngram
    )
    assert found == expected


@given(small_texts, small_texts, st.integers(1, 13))
def test_gram_hashes_stand_for_grams(one: str, two: str, ngram: int) -> None:
    similarity = jaccard(gram_hashes(one, ngram), gram_hashes(two, ngram))
    assert similarity == brute_force(one, two, ngram)


def test_short_and_wordless_texts_are_one_gram() -> None:
    assert gram_hashes("One, two!", 13).size == 1
    assert gram_hashes("...", 13).size == 1
    assert jaccard(gram_hashes("...", 13), gram_hashes("---", 13)) == 0
    np.testing.assert_array_equal(
        gram_hashes("ONE  two", 13), gram_hashes("one two", 13)
    )


def test_exact_duplicates_keep_the_least_id() -> None:
    documents = [Document(i, t) for i, t in [("b", "x"), ("c", "y"), ("a", "x")]]
    documents += [Document("d", "x"), Document("e", "X")]
    assert exact_duplicates(documents) == {"b", "d"}
    assert exact_duplicates(reversed(documents)) == {"b", "d"}


@given(st.text(), st.floats(0, 0.49), st.floats(0, 0.49))
def test_split_is_stable_as_shares_grow(text: str, one: float, two: float) -> None:
    small, large = sorted((one, two))
    if split_of(text, small, 0.1) == "validation":
        assert split_of(text, large, 0.1) == "validation"
    if split_of(text, 0.1, small) == "test":
        assert split_of(text, 0.1, large) == "test"
    assert split_of(text, 0, 0) == "train"


def test_split_shares_are_kept() -> None:
    splits = [split_of(f"document {i}", 0.1, 0.2) for i in range(4000)]
    assert abs(splits.count("validation") / 4000 - 0.1) < 0.02
    assert abs(splits.count("test") / 4000 - 0.2) < 0.02


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.5), (0.5, 0.5), (0, -1)])
def test_refuses_impossible_shares(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="validation_share="):
        split_of("text", validation, test)


def test_refuses_impossible_thresholds() -> None:
    with pytest.raises(ValueError, match="threshold=0"):
        near_duplicates([], [], threshold=0)
    with pytest.raises(ValueError, match="ngram=0"):
        near_duplicates([], [], ngram=0)


def deduplicated(documents: list[Document], path: Path, **settings):
    """Documents by split, and how many were dropped for either reason."""
    with closing(Spool(path)) as spool:
        kept = deduplicate(iter(documents), spool, 0.2, 0.2, **settings)
        by_split = {split: list(texts) for split, texts in kept.documents.items()}
    assert not path.exists()
    return by_split, kept.exact_duplicates, kept.near_duplicates


def test_documents_come_back_from_disk_as_they_were(tmp_path) -> None:
    odd = 'line\r\n\u2028 \x00 \U0001f600 \\ " \u0301'
    documents = [Document("a", odd, "title", "uri", "licence"), Document("b", "x")]
    with closing(Spool(tmp_path / "spool")) as spool:
        for number, document in enumerate(documents):
            assert spool.append(document) == number
            assert spool.read(0) == documents[0]
        assert list(Spooled(spool, [1, 0, 1])) == [documents[n] for n in (1, 0, 1)]


def test_no_text_stays_in_memory(tmp_path) -> None:
    num_documents, text_bytes = 100, 200_000

    def made() -> Iterator[Document]:
        for number in range(num_documents):
            yield Document(str(number), f"{number:09} " * (text_bytes // 10))

    tracemalloc.start()
    with closing(Spool(tmp_path / "spool")) as spool:
        kept = deduplicate(made(), spool, 0.05, 0)
        assert len(kept.documents["train"]) > num_documents / 2
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < num_documents * text_bytes / 2


def test_whole_corpus(tmp_path) -> None:
    documents = []
    for i in range(120):
        text = words(300, seed=i)
        documents.append(Document(f"{i:03}", " ".join(text)))
        documents.append(Document(f"{i:03}/copy", " ".join(text)))
        near = with_similarity(text, 0.9, seed=10_000 + i)
        documents.append(Document(f"{i:03}/near", " ".join(near)))
    result = deduplicated(documents, tmp_path / "spool")
    shuffled = random.Random(0).sample(documents, len(documents))
    assert deduplicated(shuffled, tmp_path / "spool") == result
    by_split, exact_duplicates, num_near = result
    assert exact_duplicates == 120
    kept = {name: {d.id for d in split} for name, split in by_split.items()}
    assert list(kept) == ["train", "validation", "test"]
    assert all(kept.values())
    held_out = kept["validation"] | kept["test"]
    # A pair is torn where one is held out and the other was for training.
    stems = [{i[:3] for i in ids} for ids in (kept["train"], held_out)]
    assert not stems[0] & stems[1]
    assert num_near > 20
    assert sum(map(len, kept.values())) == 240 - num_near
