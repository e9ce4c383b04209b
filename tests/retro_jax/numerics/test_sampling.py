import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_jax.numerics import sampling
from retro_jax.numerics.sampling import Sampling

_SIZE = 8
_draw = jax.jit(sampling.draw)
_kept = jax.jit(sampling.kept)


def _drawn(logits_V, num=1, seen=(), said=(), **setting):
    """Tokens that are drawn one after the other, and their log-probabilities."""
    size, said = len(logits_V), np.array(said, np.int64)
    seen_BV = np.zeros((num, size), bool)
    seen_BV[:, list(seen)] = True
    times_BV = np.tile(np.bincount(said, minlength=size).astype(np.int32), (num, 1))
    rows = sampling.rows([Sampling(**setting)] * num)
    logits_BV = np.repeat(np.float32(logits_V)[None], num, axis=0)
    return _draw(logits_BV, rows, seen_BV, times_BV, np.arange(num, dtype=np.int32))


logits = st.lists(st.floats(-8, 8, width=32), min_size=_SIZE, max_size=_SIZE).map(
    np.float32
)


@settings(deadline=None)
@given(logits, st.floats(0.1, 4), st.floats(0, 1), st.integers(0, 9), st.floats(0, 1))
def test_what_may_be_drawn_is_what_the_settings_leave(
    logits_V, temperature, top_p, top_k, min_p
):
    one = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    scaled_V = logits_V / np.float32(temperature)
    kept_V = np.asarray(_kept(scaled_V[None], sampling.rows([one])))[0]
    order = np.argsort(-scaled_V, kind="stable")[: top_k or _SIZE]
    shares = np.exp(scaled_V[order] - scaled_V.max(), dtype=np.float64)
    shares /= shares.sum()
    for place, token in enumerate(order):
        room = top_p - shares[:place].sum(), shares[place] - min_p * shares[0]
        if min(room) > 1e-5 or place == 0:
            assert kept_V[token]
        elif min(room) < -1e-5 and scaled_V[token] < scaled_V[order[place - 1]]:
            assert not kept_V[token]
    beyond = scaled_V < scaled_V[order[-1]]
    assert not kept_V[beyond].any()


def test_tokens_are_drawn_as_often_as_they_are_likely():
    probabilities = np.array([0.5, 0.05, 0.3, 0.15])
    for setting, expected in (
        ({}, probabilities),
        ({"top_p": 0.8}, [0.625, 0.0, 0.375, 0.0]),
        ({"top_k": 3}, np.array([0.5, 0.0, 0.3, 0.15]) / 0.95),
        ({"min_p": 0.4}, [0.625, 0.0, 0.375, 0.0]),
    ):
        tokens, log_probs = _drawn(
            np.log(probabilities), num=2000, temperature=1.0, **setting
        )
        shares = np.bincount(tokens, minlength=4) / 2000
        np.testing.assert_allclose(shares, expected, atol=0.05)
        # What is said of a token is the model's own view of it.
        np.testing.assert_allclose(log_probs, np.log(probabilities)[tokens], atol=1e-5)


def test_without_temperature_the_likeliest_is_taken():
    assert _drawn([1.0, 3.0, 2.0], top_p=0.1)[0] == 1
    assert _drawn([1.0, 3.0, 2.0], temperature=1e-9)[0] == 1
    assert _drawn([1.0, 3.0, 2.0], temperature=1.0, top_p=0.0)[0] == 1


@pytest.mark.parametrize(
    ("logits_V", "expected"), [([1.0, 3.0, 2.0], 2), ([-1.0, -0.5, -0.9], 2)]
)
def test_what_stands_in_the_text_is_less_wanted(logits_V, expected):
    """Whatever the sign of its logit."""
    assert _drawn(logits_V, seen=[1])[0] == 1
    token, log_prob = _drawn(logits_V, seen=[1], repetition_penalty=2.0)
    assert token == expected
    assert log_prob == pytest.approx(float(jax.nn.log_softmax(jnp.array(logits_V))[2]))


def test_penalties_count_what_was_drawn_and_not_the_prompt():
    logits_V = [1.0, 3.0, 2.2, -4.0]
    assert _drawn(logits_V, seen=[1], presence_penalty=2.0)[0] == 1
    assert _drawn(logits_V, said=[1, 1, 1], presence_penalty=0.7)[0] == 1
    assert _drawn(logits_V, said=[1, 1, 1], presence_penalty=0.9)[0] == 2
    assert _drawn(logits_V, said=[1], frequency_penalty=0.7)[0] == 1
    assert _drawn(logits_V, said=[1, 1], frequency_penalty=0.7)[0] == 2
    both = {"presence_penalty": 0.2, "frequency_penalty": 0.35}
    assert _drawn(logits_V, said=[1], **both)[0] == 1
    assert _drawn(logits_V, said=[1, 1], **both)[0] == 2
    # Below 0 they ask for more of the same.
    token, log_prob = _drawn(logits_V, said=[2], presence_penalty=-1.0)
    assert token == 2
    assert log_prob == pytest.approx(float(jax.nn.log_softmax(jnp.array(logits_V))[2]))


def test_a_row_does_not_depend_on_the_others():
    rng = np.random.default_rng(0)
    logits_BV = rng.standard_normal((4, _SIZE)).astype(np.float32)
    each = [Sampling(temperature=1.0, seed=seed, top_k=seed) for seed in range(4)]
    seen_BV, number_B = np.zeros((4, _SIZE), bool), np.arange(4, dtype=np.int32)
    times_BV = np.zeros((4, _SIZE), np.int32)
    together, _ = _draw(logits_BV, sampling.rows(each), seen_BV, times_BV, number_B)
    for row in range(4):
        one = slice(row, row + 1)
        alone, _ = _draw(
            logits_BV[one],
            sampling.rows(each[one]),
            seen_BV[one],
            times_BV[one],
            number_B[one],
        )
        assert alone[0] == together[row]


@pytest.mark.parametrize(
    "setting",
    [{"temperature": -1}, {"top_k": -1}, {"top_p": 2}, {"min_p": float("nan")}]
    + [{"repetition_penalty": 0}, {"presence_penalty": 3}, {"frequency_penalty": -3}],
)
def test_settings_by_which_nothing_can_be_chosen_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        sampling.rows([Sampling(**setting)])
