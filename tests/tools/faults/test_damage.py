"""Damage is counted by who tells of it."""

import collections
import random

from tools.faults import damage as fault_damage
from tools.faults import small_database


def test_damage_is_told_by_who_tells(tmp_path, monkeypatch):
    """Files of a toy database of three: read when opened, verified, read by nobody."""
    whole = tmp_path / "whole"
    whole.mkdir()
    for name in ("opened", "verified", "ignored", "trusted"):
        (whole / name).write_bytes(b"right")

    def facts(folder):
        if (folder / "opened").read_bytes() != b"right":
            raise ValueError(f"{folder / 'opened'} is damaged")
        return (folder / "trusted").read_bytes()

    def damaged(folder):
        content = (folder / "verified").read_bytes()
        return [] if content == b"right" else ["verified"]

    monkeypatch.setattr(small_database, "facts_of", facts)
    monkeypatch.setattr(small_database, "damaged_files", damaged)
    monkeypatch.setattr(fault_damage, "sequences_of", lambda folder: 0)
    damage = fault_damage._Damage(whole, whole, tmp_path / "copy", random.Random(0))
    names = [path.relative_to(whole) for path in sorted(whole.iterdir())]
    row = damage.row("a byte flipped", names, damage.flip)
    assert row["times"] == 4 and row["refused, named"] == 2
    told = {name: row[name] for name in fault_damage._OUTCOMES}
    wanted = collections.Counter(
        ["on opening", "by verify", "harmless", "wrong answer"]
    )
    assert told == {name: wanted[name] for name in told}
    assert damage.notes == [
        "a byte flipped, ignored: harmless",
        "a byte flipped, trusted: wrong answer",
    ]
