"""The benchmark of faults counts: kills of each kind, lost servers, damaged files."""

import argparse
import collections
import random

import pytest

from tests.toy_embedder import in_place_of_all
from tools.benchmark import __main__, result
from tools.faults import damage as fault_damage
from tools.faults import load, servers, small_database


def test_kills_leave_the_old_or_the_new_and_what_is_restarted_is_equal(tmp_path):
    out = tmp_path / "faults.json"
    flags = ["--parts=kills", "--kills=1", "--seed=3", f"--out={out}"]
    assert __main__.main(["faults", *flags]) == 0
    rows = result.read_result(out).rows
    killed = [row["kill -9 of"] for row in rows]
    builds = ["build, ExactIndex", "build, ExactIndex+ScannIndex"]
    assert killed == [*builds, "add", "replace", "delete", "compact"]
    for row in rows:
        assert row["kills"] == row["left old"] + row["left new"] == 1
        assert row["broken"] == 0
        assert row["recall@2 before"] == row["recall@2 after"] > 0.9


def test_a_broken_version_would_be_counted(tmp_path):
    """What a kill left is compared, not only opened."""
    with in_place_of_all():
        corpus = small_database.write_corpus(tmp_path / "corpus", 0)
        folder = tmp_path / "database"
        small_database.make(corpus, folder)
        before = small_database.facts_of(folder)
        assert len(before.found) == 26 and all(len(row) == 10 for row in before.found)
        small_database.UPDATES["add"](small_database.Database.open(folder))
        after = small_database.facts_of(folder)
        assert after != before and not small_database.damaged_files(folder)
        (index,) = (folder / "deltas" / "000001").glob("ids.npy")
        content = bytearray(index.read_bytes())
        content[-1] ^= 1
        index.write_bytes(content)
        with pytest.raises(ValueError, match=r"ids\.npy is damaged"):
            small_database.facts_of(folder)


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
    monkeypatch.setattr(fault_damage, "_sequences", lambda folder: 0)
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


def test_a_service_loses_servers_and_is_flooded(tmp_path):
    """Real servers; at the end of each fault all answers are whole again."""
    args = argparse.Namespace(
        rows=2000, queue=4, clients=3, seconds=0.9, timeout_s=0.5, seed=0
    )
    rows = servers.rows(tmp_path / "served", args)
    by_name = {row["service"]: row for row in rows}
    killed, stalled = by_name["a replica killed"], by_name["a shard stalled"]
    lost, flooded = by_name["a shard killed"], by_name["overload, 5 times"]
    assert killed["requests"] == killed["whole"] + killed["partial"] + killed["failed"]
    assert killed["whole"] > 5
    assert stalled["partial"] + stalled["failed"] > 0
    assert lost["partial"] > 0 and lost["whole"] > 0
    answered = flooded["whole"] + flooded["partial"]
    assert answered + flooded["shed"] + flooded["failed"] == flooded["requests"]
    assert 0 < flooded["normal again s"] < 60


def test_answers_are_counted():
    answers = load.Answers(
        load.Answer(outcome, took_s, 0.0)
        for outcome, took_s in [
            ("whole", 0.1),
            ("partial", 0.2),
            ("UNAVAILABLE", 0.5),
            ("UNAVAILABLE", 0.1),
        ]
    )
    assert answers.num("whole", "partial") == answers.errors() == 2
    assert answers.longest_ms() == 500
    assert answers.codes() == "UNAVAILABLE 2"


def test_parts_that_there_are(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["faults", "--parts=kills,fire"])
    said = capsys.readouterr().err
    assert "no part 'fire'; there are kills, service, damage" in said
