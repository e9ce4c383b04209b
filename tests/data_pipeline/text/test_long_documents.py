"""Parts of long documents: where they end, and that nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.text.documents import Document
from data_pipeline.text.long_documents import cut, part_bytes


@given(st.text("ab \n.#語😀", min_size=1, max_size=300), st.integers(8, 60))
def test_parts_are_the_text(text, size_bytes):
    document = Document("book.txt", text, "A book", "file:///book", "MIT")
    parts = list(cut(document, size_bytes))
    kept = "".join(part.text for part in parts)
    # Parts of nothing but space are no documents.
    assert kept.split() == text.split() or not text.strip()
    if len(text.encode()) <= size_bytes:
        assert parts == [document]
    for number, part in enumerate(parts, start=1):
        assert part.text.strip() or len(parts) == 1
        if part.id != document.id:
            assert part.id == f"book.txt#part-{number}"
        assert (part.title, part.uri, part.licence) == ("A book", "file:///book", "MIT")


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("x" * 60 + "\n\n# B\n" + "y" * 60, "x\n\n"),
        ("a b\n" * 20 + "\n\n\n" + "c d\n" * 20, "\n\n\n"),
        ("a b\n" * 18 + "\n" + "c d\n" * 20, "b\n\n"),
        ("one line\n" * 20, "line\n"),
        ("A sentence ends. " * 10, ". "),
        ("一句话。" * 20, "。"),
        ("word " * 30, "word "),
    ],
)
def test_parts_end_at_borders_of_the_text(text, ends):
    first, *_ = cut(Document("a", text), 100)
    assert first.text.endswith(ends)
    assert len(first.text.encode()) <= 100


def test_a_few_files_are_cut_finer():
    assert part_bytes(1_000_000, [252_000]) == 8_000
    assert part_bytes(1_000_000, [10_000_000]) == 156_250
    assert part_bytes(1_000_000, [10**9]) == 1_000_000
    assert part_bytes(1_000_000, [10_000_000] * 16) == 1_000_000
    assert part_bytes(1_000_000, []) == 1_000_000
