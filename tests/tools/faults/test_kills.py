"""Kills leave the old or the new, and restarts come out equal."""

from tools.benchmark import __main__, result


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
