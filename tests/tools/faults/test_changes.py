"""Answers under changes are judged by the titles that they show, and their version."""

import types

import pytest

from data_pipeline.service.wire import retrieval_pb2 as pb
from tools.faults import changes, load


class _Database:
    """Counts its changes, as a database counts its versions."""

    version = 0

    def replace(self, records):
        self.version += 1
        return self.version

    def compact(self):
        return self.replace([])


def _answer(version: int, *titles: str, partial: bool = False) -> pb.SearchResponse:
    passages = [
        pb.Passage(document_id=f"clock-{n}", title=title)
        for n, title in enumerate(titles)
    ]
    state = pb.DatabaseState(version=version)
    return pb.SearchResponse(passages=passages, database=state, partial=partial)


@pytest.fixture
def made(monkeypatch):
    """Two changes, at 100 s and at 103 s."""
    made = changes._Changes(_Database())
    now_s = iter([100.0, 103.0])
    clock = types.SimpleNamespace(monotonic=lambda: next(now_s))
    monkeypatch.setattr(changes, "time", clock)
    made.make()
    made.make()
    return made


@pytest.mark.parametrize(
    "answer, outcome",
    [
        (_answer(1, "0", "0"), "whole"),
        (_answer(2, "1", "1", partial=True), "partial"),
        (_answer(2, "0", "1"), "mixed"),
        (_answer(2, "0", "0"), "mixed"),  # the titles of another version
        (_answer(3, "2", "2"), "whole"),  # not noted yet
        (_answer(2), "mixed"),
    ],
)
def test_an_answer_is_of_one_version(made, answer, outcome):
    assert made.judge(answer) == outcome


def test_an_answer_is_stale_from_when_a_newer_version_is_there(made):
    answers = load.Answers(
        load.Answer(outcome, 0.1, ended_s, version)
        for outcome, ended_s, version in [
            *[("whole", 102.0, 1), ("whole", 105.5, 1), ("partial", 104.0, 1)],
            *[("whole", 109.0, 2), ("UNAVAILABLE", 110.0, -1), ("mixed", 104.0, 2)],
        ]
    )
    counts = made.counts(answers)
    assert (counts["versions"], counts["versions seen"]) == (2, 2)
    named = ("requests", "whole", "partial", "mixed", "failed")
    assert [counts[name] for name in named] == [6, 3, 1, 1, 1]
    assert (counts["stale p50 s"], counts["stale max s"]) == (0.0, 2.5)
