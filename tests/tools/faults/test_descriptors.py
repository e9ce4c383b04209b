"""A step in a process with few descriptors."""

import argparse
import contextlib

import pytest

from tools.faults import descriptors


def _open(path, count):
    with contextlib.ExitStack() as opened:
        for _ in range(count):
            opened.enter_context(path.open())


@pytest.mark.parametrize("count, failed", [(100, 0), (300, 1)])
def test_a_step_that_needs_more_descriptors_fails(tmp_path, monkeypatch, count, failed):
    (path := tmp_path / "file").touch()
    monkeypatch.setattr(
        descriptors, "_steps", lambda *_: {"open": (_open, (path, count))}
    )
    notes = []
    args = argparse.Namespace(seed=0, adds=1, embedder="toy")
    (row,) = descriptors.rows(tmp_path / "scratch", args, notes)
    assert (row["step"], row["descriptors"], row["failed"]) == ("open", 256, failed)
    assert len(notes) == failed and all("Too many open files" in one for one in notes)
