"""The account of what could not become a document."""

from data_pipeline.text.corpora import Skipped


def test_skipped_names_only_the_first() -> None:
    skipped = Skipped()
    for i in range(7):
        skipped.add("empty", f"f{i}")
    assert skipped.summary_lines() == ["7 empty: f0, f1, f2, f3, f4, ..."]
