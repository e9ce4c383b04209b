"""Copies are found, near copies above the threshold too, and nothing else."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.text.copies.deduplicate import (
    Signer,
    choose,
    digest,
    exact_duplicates,
    gram_hashes,
    jaccard,
    near_duplicates,
)
from data_pipeline.text.copies.deduplicate import split_of as split_of_digest
from data_pipeline.text.documents import Document


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


def split_of(text: str, validation_share: float, test_share: float) -> str:
    return split_of_digest(digest(text), validation_share, test_share)


def near(
    train: list[Document], held_out: list[Document], *, seed: int = 1, **settings
) -> set[str]:
    """Ids of the training documents that are near copies."""
    documents = [*train, *held_out]
    sign = Signer(settings.pop("ngram", 13), seed)
    grams = [sign.grams(document.text) for document in documents]
    signatures = [sign.signature(grams_G) for grams_G in grams]
    found = near_duplicates(
        range(len(train)),
        range(len(train), len(documents)),
        signatures.__getitem__,
        grams.__getitem__,
        **settings,
    )
    return {documents[number].id for number in found}


def test_planted_near_duplicates_are_dropped_and_only_those() -> None:
    held_out, train, expected = [], [], set()
    for i in range(60):
        text = words(400, seed=i)
        held_out.append(Document(f"held/{i}", " ".join(text)))
        for similarity in (0.9, 0.82, 0.78, 0.5):
            copy = " ".join(with_similarity(text, similarity, seed=1000 + i))
            assert abs(brute_force(held_out[-1].text, copy, 13) - similarity) < 0.01
            train.append(Document(f"train/{i}/{similarity}", copy.upper()))
            if similarity > 0.8:
                expected.add(train[-1].id)
    assert near(train, held_out) == expected
    assert near(train[::-1], held_out[::-1]) == expected
    assert near(train, held_out, seed=7) == expected


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
    found = near(train_documents, held_documents, threshold=threshold, ngram=ngram)
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
    ids, texts = list("bcade"), list("xyxxX")
    digests = [digest(text) for text in texts]
    assert exact_duplicates(ids, digests) == {0, 3}
    assert exact_duplicates(ids[::-1], digests[::-1]) == {4, 1}


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
        near([], [], threshold=0)
    with pytest.raises(ValueError, match="ngram=0"):
        near([], [], ngram=0)


def deduplicated(documents: list[Document]):
    """Documents by split, and how many were dropped for either reason."""
    sign = Signer()
    kept = choose(
        [document.id for document in documents],
        [digest(document.text) for document in documents],
        lambda number: sign(documents[number].text),
        lambda number: sign.grams(documents[number].text),
        0.2,
        0.2,
    )
    by_split = {
        split: [documents[number] for number in numbers]
        for split, numbers in kept.numbers.items()
    }
    return by_split, kept.exact_duplicates, kept.near_duplicates


def test_whole_corpus() -> None:
    documents = []
    for i in range(120):
        text = words(300, seed=i)
        documents.append(Document(f"{i:03}", " ".join(text)))
        documents.append(Document(f"{i:03}/copy", " ".join(text)))
        copy = with_similarity(text, 0.9, seed=10_000 + i)
        documents.append(Document(f"{i:03}/near", " ".join(copy)))
    result = deduplicated(documents)
    shuffled = random.Random(0).sample(documents, len(documents))
    assert deduplicated(shuffled) == result
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


def unspaced(letters: str, seed: int) -> str:
    rng = random.Random(seed)
    clauses = ["".join(rng.choices(letters, k=rng.randint(12, 30))) for _ in range(60)]
    return "。".join(clauses)


@pytest.mark.parametrize(
    "letters",
    [
        "".join(map(chr, range(0x4E00, 0x4E00 + 1500))),
        "".join(map(chr, range(0x3041, 0x3094))),
        "".join(map(chr, range(0x0E01, 0x0E3A))),
        "".join(map(chr, range(0x1780, 0x17B3))),
    ],
    ids=["chinese", "japanese", "thai", "khmer"],
)
def test_near_copies_are_found_where_words_are_not_written_apart(letters: str) -> None:
    texts = [unspaced(letters, seed) for seed in range(6)]
    # Another letter in each clause or so: as runs of letters none would be the same.
    copies = [
        text[:30]
        + "".join(
            letters[0] if place % 200 == 0 else letter
            for place, letter in enumerate(text[30:])
        )
        for text in texts
    ]
    held_out = [Document(f"h{i}", text) for i, text in enumerate(texts)]
    train = [Document(f"t{i}", copy) for i, copy in enumerate(copies)]
    train.append(Document("other", unspaced(letters, 99)))
    assert near(train, held_out) == {f"t{i}" for i in range(6)}


def test_full_width_letters_and_composed_accents_are_the_same_words() -> None:
    text = " ".join(words(100, seed=1)) + " café"
    wide = text.replace("w", "Ｗ").replace("é", "é")
    np.testing.assert_array_equal(gram_hashes(text, 13), gram_hashes(wide, 13))


def test_a_few_documents_leave_one_for_the_test() -> None:
    for count in (2, 3, 8, 20):
        documents = [
            Document(str(i), " ".join(words(50, seed=100 * count + i)))
            for i in range(count)
        ]
        by_split, *_ = deduplicated(documents)
        assert by_split["test"] and by_split["train"]
        assert deduplicated(documents[::-1])[0] == by_split
    assert not deduplicated(documents[:1])[0]["test"]


def test_a_page_that_a_book_quotes_is_not_held_out_text() -> None:
    """Whichever side either falls on, only the book stays."""
    kept = set()
    for seed in range(20):
        page = " ".join(words(60, seed=seed))
        book = " ".join(
            [*words(600, seed=1000 + seed), page, *words(600, seed=seed + 50)]
        )
        others = [
            Document(f"o{i}", " ".join(words(50, seed=5000 + 10 * seed + i)))
            for i in range(6)
        ]
        documents = [Document("page", page), Document("book", book), *others]
        by_split, *_ = deduplicated(documents)
        split_of_id = {d.id: split for split, of in by_split.items() for d in of}
        assert "book" in split_of_id
        torn = (split_of_id.get("page", "train") == "train") != (
            split_of_id["book"] == "train"
        )
        assert "page" not in split_of_id or not torn
        kept.add("page" in split_of_id)
    assert kept == {True, False}


def test_long_texts_take_few_bytes_a_byte() -> None:
    import tracemalloc

    text = " ".join(words(200_000, seed=3))
    sign = Signer()
    sign.grams(text)  # its cache of words is not the text's
    tracemalloc.start()
    sign(text)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 16 * len(text)
