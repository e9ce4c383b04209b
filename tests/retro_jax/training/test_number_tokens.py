"""Numbers become others, of tokens that are there."""

import numpy as np

from retro_jax.training.number_tokens import NumberTokens

ONES = [str(digit).encode() for digit in range(10)]
WORDS = [b"", b"a", b" ", b"km"]


def test_every_digit_becomes_another_and_no_two_the_same():
    for seed in range(50):
        token_V = NumberTokens(WORDS + ONES).exchanged(np.random.default_rng(seed))
        np.testing.assert_array_equal(token_V[:4], range(4))
        assert sorted(token_V[4:]) == list(range(4, 14))
        assert (token_V[4:] != np.arange(4, 14)).all()


def test_long_numbers_follow_their_digits_and_stay_where_there_is_no_such_token():
    hundred = [f"{number:02d}".encode() for number in range(100)]
    numbers = NumberTokens([*ONES, *hundred, b"mp3", b" 7"])
    token_V = numbers.exchanged(np.random.default_rng(3))
    assert token_V.dtype == np.int32
    for number in range(100):
        first, second = divmod(number, 10)
        assert token_V[10 + number] == 10 + 10 * token_V[first] + token_V[second]
    np.testing.assert_array_equal(token_V[110:], [110, 111])


def test_exchanges_are_drawn():
    numbers = NumberTokens(ONES)
    drawn = {tuple(numbers.exchanged(np.random.default_rng(seed))) for seed in range(9)}
    assert len(drawn) == 9


def test_a_digit_and_the_byte_that_spells_it_are_not_taken_for_each_other():
    token_V = NumberTokens([*ONES, *ONES, b"7"]).exchanged(np.random.default_rng(1))
    np.testing.assert_array_equal(token_V[10:20], token_V[:10] + 10)
    assert sorted(token_V[:10]) == list(range(10)) and token_V[20] == 20
