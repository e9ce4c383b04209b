"""The texts that the embedders are compared with."""

import pytest

from tools.benchmark import embed


def test_code_is_cut_into_chunks():
    chunks = embed.code_chunks(50, words=10)
    assert len(chunks) == 50
    assert {len(chunk.split()) for chunk in chunks} == {10}
    with pytest.raises(ValueError, match="chunks, not 100000000"):
        embed.code_chunks(100_000_000, words=1_000)
