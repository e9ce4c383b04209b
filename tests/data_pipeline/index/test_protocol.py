"""Every kind of index, and a union of shards, is what the protocol says."""

import numpy as np
import pytest

from data_pipeline.index import build_index, protocol, sharded

VECTORS_TW = np.eye(4, dtype=np.float32)


@pytest.mark.parametrize("kind", ["exact", "faiss-flat"])
def test_an_index_satisfies_the_protocol(kind):
    built = build_index(VECTORS_TW, kind)
    assert isinstance(built, protocol.Index)
    assert (built.size, built.width) == (4, 4)


def test_a_union_can_be_searched_but_not_saved():
    shard = sharded.Shard(np.arange(4), build_index(VECTORS_TW, "exact"))
    union = sharded.ShardedIndex([shard], 4)
    assert isinstance(union, protocol.Searchable)
    assert not isinstance(union, protocol.Index)
