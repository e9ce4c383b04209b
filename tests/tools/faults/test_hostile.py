"""Harm that a database folder does is told from what is refused and from what is harmless."""

import contextlib

from tests.toy_embedder import in_place_of_all
from tools.faults import damage, hostile


def test_harm_is_told_from_refusal(tmp_path):
    """With real attacks, one harmless change, and what a careless reader would do."""
    with in_place_of_all():
        whole = damage.updated(tmp_path, 0)
    attacks = hostile._kinds()["headers of arrays that lie"]
    with contextlib.closing(hostile._User(whole, tmp_path)) as user:
        assert user.outcome(lambda folder: None) == ("same answers", "")
        outcome, _ = user.outcome(attacks["chunks/train-00000/tokens: cut"])
        assert outcome == "refused"
        user.use = _reads_and_writes_outside
        assert user.outcome(lambda folder: None)[0] == "broken"
        user.use = _reads_outside
        outcome, said = user.outcome(lambda folder: None)
        assert outcome == "broken" and "manifest.json" in said
    assert len([name for kind in hostile._kinds().values() for name in kind]) > 100


def _reads_outside(folder):
    (folder / ".." / "outside" / "manifest.json").read_text()
    return hostile._worst([])


def _reads_and_writes_outside(folder):
    (folder.parent / "outside" / "manifest.json").write_text("{}")
    return "same answers", ""
