"""Questions are read in SQuAD's layout; both rankings are compared with vectors."""

import json
import lzma

import numpy as np
import pytest

from tools.benchmark import hybrid


def test_questions_with_the_ids_of_their_paragraphs(tmp_path):
    paragraphs = [
        {"context": "one", "qas": [{"question": "q1"}, {"question": "q2"}]},
        {"context": "two", "qas": []},
        {"context": "one", "qas": [{"question": "q3"}]},
    ]
    path = tmp_path / "squad.json.xz"
    path.write_bytes(
        lzma.compress(json.dumps({"data": [{"paragraphs": paragraphs}]}).encode())
    )
    texts, asked = hybrid.read_squad(path)
    assert texts == {"p00000": "one", "p00001": "two"}
    assert asked == [("q1", "p00000"), ("q2", "p00000"), ("q3", "p00000")]
    bad = tmp_path / "bad.json"
    bad.write_text("[]")
    with pytest.raises(ValueError, match=r"bad\.json is not in SQuAD's layout"):
        hybrid.read_squad(bad)


def test_recall_of_both_is_compared_with_vectors_question_by_question():
    hits = {
        "vectors": np.array([[1, 0], [0, 1], [0, 0], [0, 0]], bool),
        "words": np.zeros((4, 2), bool),
        "both": np.array([[1, 0], [1, 0], [1, 0], [0, 0]], bool),
    }
    first, second = hybrid._row(hits, 1), hybrid._row(hits, 2)
    assert (first["vectors"], first["words"], first["both"]) == (0.25, 0, 0.75)
    assert str(first["both less vectors"]).startswith("+0.500 (")
    assert second["vectors"] == 0.5
    assert str(second["both less vectors"]).startswith("+0.250 (")
