"""Arrays travel bit for bit; what a shard did not find is filled up."""

import numpy as np
import pytest

from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb

_LIMITS = messages.Limits(queries=2)


def test_vectors_and_tokens_travel_bit_for_bit():
    vectors_QW = np.array([[1e-30, -2.5, 3], [4, 5, 6]], np.float32)
    packed = messages.pack_vectors(vectors_QW)
    np.testing.assert_array_equal(
        messages.unpack_vectors(packed, 3, _LIMITS), vectors_QW, strict=True
    )
    tokens_QM = np.array([[0, 99], [7, 8]])
    packed = messages.pack_tokens(tokens_QM)
    unpacked_QM = messages.unpack_tokens(packed, 100, _LIMITS)
    np.testing.assert_array_equal(unpacked_QM, tokens_QM)
    with pytest.raises(ValueError, match=r"ids 0\.\.99 are outside 0\.\.98"):
        messages.unpack_tokens(packed, 99, _LIMITS)
    with pytest.raises(ValueError, match=r"must hold 1\.\.1 queries, there are 2"):
        messages.unpack_tokens(packed, 100, messages.Limits(queries=1))


def test_what_a_shard_lacks_is_filled_up_and_a_wrong_number_refused():
    ids_QN = np.array([[2**40, 3], [5, 1]])
    distances_QN = np.array([[0.25, 0.5], [1, 2]], np.float32)
    packed = messages.pack_found(ids_QN, distances_QN, 3)
    found_QN, distances_found_QN = messages.unpack_found(packed, 2, 3)
    assert found_QN.tolist() == [[2**40, 3, -1], [5, 1, -1]]
    assert distances_found_QN.tolist() == [[0.25, 0.5, np.inf], [1, 2, np.inf]]
    with pytest.raises(ValueError, match="1 queries have 2 rows of chunk_ids and 2"):
        messages.unpack_found(packed, 1, 3)
    with pytest.raises(ValueError, match="48 bytes, no multiple of the 32 of a row"):
        messages.unpack_found(packed, 2, 4)


def test_passages_are_read_as_the_database_finds_them(sharded_database):
    chunk_len = sharded_database.chunk_len
    read = messages.read_passages(sharded_database, [3, 0], 2 * chunk_len, True)
    assert [passage.chunk_id for passage in read] == [3, 0]
    for passage in read:
        expected = sharded_database.found(passage.chunk_id, 0.5)
        assert messages.found_of(passage, 0.5) == expected
        assert len(messages.tokens_of(passage)) == 2 * chunk_len
    (bare,) = messages.read_passages(sharded_database, [3], 0, False)
    assert bare == pb.Passage(chunk_id=3)


def test_bytes_of_passages_are_bounded_before_and_while_they_are_read(sharded_database):
    limits = messages.Limits(answer_bytes=10_000)
    request = pb.PassagesRequest(chunk_ids=[0, 1, 2] * 50, passage_len=512)
    about = messages.check_passages(request, sharded_database, limits)
    assert about == 3 * (4 * 512 + 8 * sharded_database.chunk_len)
    request.chunk_ids.extend(range(10))
    with pytest.raises(ValueError, match="10 passages of about .* more than the 10000"):
        messages.check_passages(request, sharded_database, limits)
    with pytest.raises(ValueError, match="2 passages have more than the 100 bytes"):
        messages.read_passages(sharded_database, [0, 1], 0, True, most_bytes=100)


def test_passages_are_read_no_longer_than_somebody_waits(sharded_database):
    wanted = iter([False, True])
    read = messages.read_passages(
        sharded_database, range(400), 0, False, is_given_up=lambda: next(wanted)
    )
    assert 0 < len(read) < 400


@pytest.mark.parametrize(
    ("num_queries", "width", "excluded", "message"),
    [
        (2, 1000, [], "2 vectors of width 1000 have 8000 bytes, more than 5000"),
        (1, 1, ["a" * 60, "b" * 60], "exclude_documents has 120 bytes, more than 100"),
    ],
)
def test_bytes_that_go_to_the_shards_are_bounded(num_queries, width, excluded, message):
    limits = messages.Limits(vectors_bytes=5000, excluded_bytes=100)
    with pytest.raises(ValueError, match=message):
        messages.check_search(1, num_queries, width, excluded, limits)
