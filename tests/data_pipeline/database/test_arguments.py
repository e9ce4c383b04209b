"""What is no list of texts, no number and no vector is refused by name, everywhere."""

import numpy as np
import pytest

from tests.changed_database import NEWS

pytestmark = pytest.mark.usefixtures("toy_embedder", "untyped")

ONE = "how are dates parsed"


@pytest.mark.parametrize(
    ("method", "args", "message"),
    [
        ("search", (ONE, 3), r"texts must be a list, are 'how .*: give \['how"),
        ("search", (b"bytes", 3), "texts must be a list"),
        ("search", (None, 3), "texts must be a list, are None"),
        ("search", (7, 3), "texts must be a list, are 7"),
        ("search", ([None], 3), "texts must be strings, one is None"),
        ("search", ([b"a"], 3), "texts must be strings, one is b'a'"),
        ("search", (["a", ""], 3), r"texts\[1\] is empty"),
        ("search", (["a\0b"], 3), r"texts\[0\] holds a NUL"),
        ("search", (["\ud800"], 3), r"texts\[0\] is no Unicode text"),
        ("search", (["a"], 0), "k must be at least 1, is 0"),
        ("search", (["a"], 2.5), "k must be a whole number, is 2.5"),
        ("search", (["a"], "3"), "k must be a whole number, is '3'"),
        ("search", (["a"], None), "k must be a whole number, is None"),
        ("search", (["a"], True), "k must be a whole number, is True"),
        ("nearest", (np.ones((1, 31), np.float32), 3), "width 31"),
        ("nearest", (np.ones((1, 32), np.complex64), 3), "must be floats, not complex"),
        ("nearest", (np.full((1, 32), np.nan, np.float32), 3), "not finite"),
        ("nearest", (np.full((1, 32), np.inf), 3), "not finite"),
        ("nearest", (np.zeros((1, 32), np.float32), 3), "zero"),
        ("nearest", (np.ones(32, np.float32), 3), "must be .rows, width."),
        ("nearest", (None, 3), "must be .rows, width."),
        ("nearest", ([["a"]], 3), "must be floats"),
        ("nearest", (np.ones((1, 32), np.float32), -1), "k must be at least 1"),
        ("retrieve", (np.zeros(8, np.int32), 2), "must be rows of token ids"),
        ("retrieve", (np.zeros((1, 8)), 2), "must be rows of token ids"),
        ("retrieve", ("text", 2), "must be rows of token ids"),
        ("retrieve", (np.full((1, 8), -1), 2), "tokens_QM must lie in 0"),
        ("retrieve", (np.full((1, 8), 2**30), 2), "tokens_QM must lie in 0"),
        ("retrieve", (np.zeros((1, 8), np.int32), 0), "k must be at least 1"),
        ("found", ("7",), "chunk_id must be a whole number"),
        ("found", (1.5,), "chunk_id must be a whole number"),
        ("delete", (ONE,), "ids of documents must be a list"),
        ("delete", (None,), "ids of documents must be a list"),
        ("delete", ([3],), "ids of documents must be strings, one is 3"),
        ("add", (NEWS,), "documents must be a list"),
        ("add", ({"text": NEWS},), "documents must be a list"),
        ("add", (None,), "documents must be a list"),
        ("add", ([NEWS],), "document 0 is no mapping"),
        ("replace", ({"text": NEWS},), "documents must be a list"),
    ],
)
def test_what_can_not_be_asked_is_named(tiny_database, method, args, message):
    with pytest.raises(ValueError, match=message):
        getattr(tiny_database, method)(*args)
    assert tiny_database.version == 0


@pytest.mark.parametrize("neighbour_len", [0, 7, 9, -8, 1.5, "16"])
def test_passages_are_of_whole_chunks(tiny_database, neighbour_len):
    tokens_QM = np.zeros((1, 8), np.int32)
    with pytest.raises(ValueError, match="neighbour_len must be"):
        tiny_database.retrieve(tokens_QM, 2, neighbour_len=neighbour_len)


@pytest.mark.parametrize("excluded", [ONE, None, [3]])
@pytest.mark.parametrize("rank", ["dense", "hybrid"])
def test_excluded_documents_are_a_list(tiny_database, excluded, rank):
    with pytest.raises(ValueError, match=r"exclude_documents must be|index of words"):
        tiny_database.search(["a"], 1, exclude_documents=excluded, rank=rank)


@pytest.mark.parametrize("chunk_id", [10**9, 10**30, -1])
def test_a_chunk_that_is_not_there(tiny_database, chunk_id):
    with pytest.raises(
        IndexError, match=f"there is no chunk {chunk_id} in .*, it has 0"
    ):
        tiny_database.found(chunk_id)


def test_numbers_and_lists_of_any_kind_are_taken(tiny_database):
    wanted = tiny_database.search(["a", "b"], 2)
    for texts in (("a", "b"), np.array(["a", "b"])):
        assert tiny_database.search(texts, np.int64(2)) == wanted
    assert tiny_database.found(np.int32(3)).chunk_id == 3
