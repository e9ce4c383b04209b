"""Settings are described where they are declared, and what does not fit is refused."""

import dataclasses

import pytest

from experiments import config
from experiments.configs import tiny


def test_a_comment_says_what_each_setting_means():
    settings = config.settings()
    assert len(settings) > 70
    silent = [setting.name for setting in settings if len(setting.meaning) < 4]
    assert not silent


@dataclasses.dataclass
class _Commented:
    """Fields with comments wherever a formatter puts them."""

    # One above,
    # in two lines.
    above: int = 0
    beside: str = "#"  # no comment in a string
    silent: int = 1
    within: str = "a long value"  # in brackets

    def method(self) -> int:
        local: int = 3  # no field
        return local


def test_comments_are_those_of_their_fields():
    assert config._comments(_Commented) == {
        "above": "One above, in two lines.",
        "beside": "no comment in a string",
        "silent": "",
        "within": "in brackets",
    }


def test_settings_have_their_defaults_or_their_values():
    defaults = {setting.name: setting for setting in config.settings()}
    assert defaults["data.vocab_size"].value == 4096
    assert defaults["model.depth"].value is dataclasses.MISSING
    assert defaults["model.cca_layers"].type == "tuple[int, ...]"
    assert "data" not in defaults and "init_from" in defaults
    values = {s.name: s.value for s in config.settings(tiny.get_config("retrofit"))}
    assert values.keys() == defaults.keys()
    assert values["model.cca_layers"] == (2, 4)
    assert values["init_from"] == "work/tiny-baseline"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("split", "train", "must be validation or test, is 'train'"),
        ("batch_size", 0, "batch_size must be at least 1, is 0"),
        ("seed", -1, "seed must be at least 0, is -1"),
        ("temperature", float("nan"), "temperature must be at least 0, is nan"),
        ("top_p", 0.0, r"top_p must be in \(0, 1\], is 0.0"),
        ("min_p", 2.0, r"min_p must be in 0\.\.1, is 2.0"),
        ("repetition_penalty", 0.0, "repetition_penalty must be above 0, is 0.0"),
        ("presence_penalty", 2.5, r"presence_penalty must be in -2\.\.2, is 2.5"),
        ("frequency_penalty", -3.0, r"frequency_penalty must be in -2\.\.2"),
        ("stop", ("",), "stop must hold texts"),
        ("conditions", ("on", "of"), "conditions must be of off, on, .*'of'"),
        ("neighbours", (1, -1), "neighbours must be whole numbers from 0"),
        ("database_shares", (0.5, 1.5), r"database_shares must be in \(0, 1\]"),
        ("stride_chunks", -1, "stride_chunks must be at least 0"),
        ("name", "../results", "name must be letters"),
    ],
)
def test_a_judgement_that_can_not_be_made_is_refused(name, value, message):
    cfg = tiny.get_config()
    setattr(cfg.evaluation, name, value)
    with pytest.raises(ValueError, match=message):
        cfg.validate()


def test_parts_that_do_not_fit_together_are_refused():
    cfg = tiny.get_config()
    cfg.model.chunk_len = 32
    with pytest.raises(
        ValueError, match="data.chunk_len is 64 and model.chunk_len is 32"
    ):
        cfg.validate()
    cfg = tiny.get_config("baseline")
    cfg.init_from = "somewhere"
    with pytest.raises(ValueError, match="model.cca_layers is empty"):
        cfg.validate()


def test_a_longer_run_and_a_faster_one_are_the_same_run():
    cfg, other = tiny.get_config(), tiny.get_config()
    other.train.steps += 1
    other.train.log_every += 1
    assert cfg.identity() == other.identity()
    other.model.remat = "full"
    assert cfg.identity() != other.identity()
    assert cfg.model_identity() == other.model_identity()
    other.model.depth += 1
    assert cfg.model_identity() != other.model_identity()


def test_the_vocabulary_is_rounded_up_for_a_mesh():
    cfg = tiny.get_config()
    for size, rows in ((2048, 2048), (2049, 2176), (1, 128)):
        cfg.set_vocab_size(size)
        assert cfg.model.vocab_size == rows
