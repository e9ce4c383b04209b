"""Scores of passages are counted by hand, and made by a model that reads what it is given."""

import numpy as np
import pytest

from experiments.jobs import attribution
from experiments.jobs.attribution import Read, Scored


def _row(answer, said, states, attention, effects, document=0) -> Scored:
    passages = [[1, 2]] * len(states)
    read = Read([1], answer, document, passages, np.array(states, bool))
    return Scored(read, said, np.array(attention), np.array(effects))


_ROWS = [
    _row("12", " 12 km", [1, 0, 0], [0.6, 0.3, 0.1], [3.0, 1.0, 0.0], 0),
    _row("7", " 7", [0, 1, 0], [0.5, 0.4, 0.1], [1.0, 2.0, 0.0], 1),
    _row("5", " 6", [1, 0, 0], [0.1, 0.2, 0.7], [3.0, 2.0, 1.0], 2),  # not right
    _row("8", "8", [1, 1], [0.1, 0.9], [0.0, 1.0], 3),  # any passage is true
]


def test_scores_are_counted_where_a_right_answer_has_a_true_passage():
    found = attribution.summary(_ROWS, seed=0)
    assert (found["questions"], found["right"]) == (4, 3)
    assert found["most_attention_is_true"]["mean"] == 0.5
    assert found["most_effect_is_true"]["mean"] == 1.0
    assert found["most_effect_is_true"]["questions"] == 2
    assert found["by_chance"] == pytest.approx(1 / 3)
    assert found["top_agreement"]["mean"] == 0.5
    low, high = found["top_agreement"]["interval"]
    assert 0 <= low < 0.5 < high <= 1
    ranks = found["rank_correlation"]
    assert ranks["questions"] == 3
    assert ranks["mean"] == pytest.approx((1.0 + 0.5 - 1.0) / 3)


@pytest.mark.parametrize(
    ("said", "is_right"),
    [(" 12", True), ("12, and", True), ("123", False), ("12.5", False)],
)
def test_a_number_is_right_as_a_whole(said, is_right):
    assert _row("12", said, [1], [1.0], [0.0]).is_right == is_right


def test_nothing_is_said_of_no_question():
    found = attribution.summary([], seed=0)
    assert found["questions"] == 0 and found["top_agreement"] is None


def test_a_model_reads_the_passages_that_are_given(run):
    """And none beside: absent ones have no attention and no effect."""
    job, _ = run
    made = job()
    _, params = made.run.restored()
    tokenizer = made.database.tokenizer
    prompt = tokenizer.encode("The population of").tolist()
    passages = [tokenizer.encode(text).tolist() for text in ("is 12,345", "of 99", "a")]
    rows = [
        Read(prompt, "12", 0, passages, np.array([True, False, False])),
        Read(prompt[:2], "12", 1, passages[:1], np.array([True])),  # left out
        Read(prompt[:3], "12", 2, passages[:2], np.array([True, False])),
    ]
    done: list[int] = []
    first, second = attribution.scored(
        made.run.cfg, params, tokenizer, rows, advance=done.append
    )
    assert sum(done) == 3  # what is left out is done, too
    assert first.read is rows[0] and second.read is rows[2]
    assert first.attention_N.shape == first.effects_N.shape == (3,)
    assert second.attention_N.shape == (2,)
    for each in (first, second):
        assert each.attention_N.sum() == pytest.approx(1.0, abs=1e-4)
        assert np.abs(each.effects_N).max() > 0
