"""Which documents stand in others, against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.text.copies.containment import HeldOut

grams = st.sets(st.integers(0, 12), min_size=1, max_size=8)


def stands_in(part: set[int], whole: set[int], threshold: float) -> bool:
    return len(part) <= len(whole) and len(part & whole) / len(part) >= threshold


@settings(deadline=None, max_examples=200)
@given(
    st.lists(grams, max_size=6),
    st.lists(grams, max_size=6),
    st.sampled_from([0.5, 0.8, 1.0]),
)
def test_agrees_with_brute_force(train, held_out, threshold):
    documents = [*held_out, *train]
    arrays = [np.array(sorted(of_one), np.uint32) for of_one in documents]
    held, trained = range(len(held_out)), range(len(held_out), len(documents))
    index = HeldOut(held, arrays.__getitem__)

    def those(parts, wholes):
        return {
            part
            for part in parts
            if any(stands_in(documents[part], documents[w], threshold) for w in wholes)
        }

    assert index.within(trained, threshold) == those(held, trained)
    assert index.containing(trained, threshold) == those(trained, held)


@pytest.mark.parametrize("num_documents", [400, 1600])
def test_what_all_documents_share_costs_nothing(num_documents):
    """A licence at the head of each: without care every pair would be compared."""
    rng = np.random.default_rng(0)
    licence = np.arange(40, dtype=np.uint32)
    arrays = [
        np.unique(np.concatenate([licence, rng.integers(100, 2**32, 60, np.uint32)]))
        for _ in range(num_documents)
    ]
    asked = []

    def grams_of(number):
        asked.append(number)
        return arrays[number]

    half = num_documents // 2
    index = HeldOut(range(half), grams_of)
    assert not index.within(range(half, num_documents), 0.8)
    assert not index.containing(range(half, num_documents), 0.8)
    assert len(asked) <= 2 * num_documents
