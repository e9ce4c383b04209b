import argparse

from tests import tiny_model
from tools.benchmark import generate, sizes


def test_each_way_makes_its_tokens_and_is_compared(monkeypatch):
    monkeypatch.setattr(sizes, "model", lambda size: tiny_model.small_config())
    monkeypatch.setitem(
        sizes.LOADS, "tiny", sizes.Load(sequence_len=8, batch_size=1, num_neighbours=1)
    )
    args = argparse.Namespace(
        size="tiny", tokens=12, batch_size=1, window_tokens=2, rounds=1
    )
    result = generate.run(args)
    assert [row["what"] for row in result.rows] == [
        "whole window for each token",
        "one prompt of a chunk",
        "a prompt that fills the window",
    ]
    for row in result.rows[1:]:
        assert row["tokens a second"] > 0 and row["last quarter by first"] > 0
    assert result.rows[0]["by the whole window"] == "1.00 (1.00 to 1.00)"
