"""Settings of others, each look at which is checked."""

import pytest

from retro_jax.pretrained.description import Settings


def test_settings_name_their_file_and_what_they_must_be():
    settings = Settings({"a": 3, "b": None, "c": "x" * 100}, "config.json")
    assert settings.size("a") == 3 and settings.size("b", 5) == 5
    assert settings.nulls == {"b"}
    with pytest.raises(
        ValueError, match=r"config.json: c must be a number above 0, is 'x"
    ):
        settings.number("c")
    with pytest.raises(ValueError) as error:
        settings.flag("c", default=False)
    assert len(str(error.value)) < 120
    with pytest.raises(ValueError, match="b is missing, must be a whole number"):
        settings.size("b")


def test_ids_of_tokens_are_one_several_or_none():
    settings = Settings({"one": 0, "more": [3, 9], "bad": -1}, "config.json")
    assert settings.tokens("one", 10) == (0,)
    assert settings.tokens("more", 10) == (3, 9)
    assert settings.tokens("none", 10) == ()
    for name, rows in (("more", 9), ("bad", 10)):
        with pytest.raises(ValueError, match=f"{name} must be ids of tokens below"):
            settings.tokens(name, rows)
