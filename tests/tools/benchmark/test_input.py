"""The input pipeline beside a step."""

import json

import pytest

from tools.benchmark import __main__, result
from tools.benchmark import input as input_benchmark


def test_the_input_pipeline_beside_a_step(monkeypatch, tmp_path):
    """Random tokens, written as a database's sequences are."""
    row = {"size": "tiny", "retrieval": "on", "sequences/s": 0.5}
    measured = result.Result(name="train", conditions={}, rows=[row], notes=[])
    monkeypatch.setattr(input_benchmark.train, "run", lambda args: measured)
    out = tmp_path / "input.json"
    flags = ["--sequences=12", "--batch_size=4", "--batches=5", "--rounds=2"]
    assert __main__.main(["input", *flags, f"--out={out}"]) == 0
    (found,) = json.loads(out.read_text())["rows"]
    assert (found["length"], found["neighbours"]) == (2048, 2)
    assert found["step sequences/s"] == 0.5
    assert found["input/step"] == pytest.approx(found["sequences/s"] / 0.5, rel=0.01)
