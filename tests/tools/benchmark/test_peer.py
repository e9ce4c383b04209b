"""The peer is compared by dtype and by the fastest; its environment is asked for."""

import argparse
import sys

import pytest

from tests.tools.benchmark.stand_in import contestant_command
from tools.benchmark import __main__, peer


def peer_arguments(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    peer.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args(flags)


def test_the_peer_is_compared_by_dtype_and_by_the_fastest(monkeypatch):
    """Contestants that sleep: theirs in bfloat16 is the fastest."""

    def command(args, entry, retrieval):
        step_s = {"float32": 0.08, "bfloat16": 0.02}.get(entry.mode, 0.04)
        return contestant_command(step_s * (2 if entry.mode.endswith("none") else 1))

    monkeypatch.setattr(peer, "_command", command)
    monkeypatch.setattr(peer, "_peer_version", lambda python: "9.9")
    monkeypatch.setattr(peer, "_ROOM_BYTES", 1)
    found = peer.run(
        peer_arguments("--ours", "dtype=float32,remat=dots", "--rounds", "5")
    )
    assert [(row["who"][:5], row["mode"]) for row in found.rows[:3]] == [
        ("RETRO", "float32"),
        ("RETRO", "bfloat16"),
        ("retro", "dtype=float32,remat=dots"),
    ]
    assert found.rows[2]["part"] == "steps"
    beside = [row for row in found.rows if row["part"] == "beside"]
    same_dtype, fastest, *_ = beside
    assert (same_dtype["ours"], same_dtype["beside"]) == (
        "dtype=float32,remat=dots",
        "float32",
    )
    assert (fastest["beside"], fastest["fastest of each"]) == ("bfloat16", "yes")
    assert str(fastest["tokens/s ratio"]).startswith("0.")
    assert 1.2 < float(str(same_dtype["tokens/s ratio"]).split()[0]) < 2.5
    rates = same_dtype["ours tokens/s"] / same_dtype["beside tokens/s"]
    assert 1.2 < rates < 2.5
    assert len(found.rows) == 6 + 4 and len(beside) == 4


def test_the_peers_environment_is_asked_for(monkeypatch, capsys):
    assert __main__.main(["peer"]) == 2
    assert "--peer_python is None, which is not there: make its" in (
        capsys.readouterr().err
    )
    assert __main__.main(["peer", f"--peer_python={sys.executable}"]) == 2
    assert "No module named 'retro_pytorch'" in capsys.readouterr().err
    monkeypatch.setattr(peer, "_peer_version", lambda python: "9.9")
    monkeypatch.setattr(peer.memory, "free_bytes", lambda: 3_000_000_000)
    with pytest.raises(ValueError, match="may take 16 GB and 3 GB are free"):
        peer.run(peer_arguments())
