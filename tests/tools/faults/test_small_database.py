"""What a fault left is compared, not only opened."""

import pytest

from tests.toy_embedder import in_place_of_all
from tools.faults import small_database


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
