"""A model's card: the run's numbers, what is not known, and nobody's paths."""

import re

from experiments.report import model_card
from tests import run_files

_ABOUT = {
    "generation": {"num_neighbours": 2, "max_distance": None, "temperature": 0.0},
    "tokenizer": {},
    "database": {
        "fingerprint": "abc`<b>",
        "version": 3,
        "chunk_len": 64,
        "documents": 12,
        "chunks": 1234,
    },
}


def test_numbers_of_the_run_stand_in_the_card():
    results = run_files.retrofit_results()
    settings = run_files.retrofit_settings()["config"]
    card = model_card.text("a_model", _ABOUT, results, settings)
    for values in results["conditions"].values():
        assert f"{values['bits_per_byte']:.4f}" in card
    assert "12 documents (1,234 chunks of 64 tokens), version 3" in card
    assert "``abc`<b>``" in card  # as code, whatever it says
    assert "num\\_neighbours 2, temperature 0.0." in card
    assert 'from_pretrained("a_model")' in card.replace("'", '"')
    assert not re.search(r"`/|\bNone\b", card)


def test_what_is_not_known_is_said():
    about = _ABOUT | {"database": {}}
    card = model_card.text("m", about, {}, {})
    assert "was not evaluated" in card and "was not there" in card
    assert "## Model" not in card
