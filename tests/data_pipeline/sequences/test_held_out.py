"""Text that is searched for when it is read gives the batches that a build wrote down."""

import dataclasses

import numpy as np
import pytest

from data_pipeline.sequences import held_out
from data_pipeline.sequences.batches import Sequences
from data_pipeline.text.documents import Document
from tests import tiny_corpus


@pytest.fixture(scope="module")
def cfg(tiny_corpus_folder):
    return tiny_corpus.config(tiny_corpus_folder)


@pytest.fixture(scope="module")
def text(tiny_database):
    return held_out.text_of_split(tiny_database.snapshot, "test")


def _assert_same(found, wanted):
    found, wanted = list(found), list(wanted)
    assert len(found) == len(wanted) > 0
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype, name
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_batches_are_the_datasets(tiny_database, cfg, text):
    written = Sequences(tiny_database.folder / "dataset" / "all", "test")
    found = held_out.HeldOut(text, tiny_database.snapshot, cfg)
    assert len(found) == len(written)
    _assert_same(found.in_order(4), written.in_order(4))
    _assert_same(found.in_order(4, every=3), written.in_order(4, every=3))


def test_documents_that_are_read_are_cut_as_in_a_build(tiny_database, text):
    snapshot = tiny_database.snapshot
    documents = [
        Document(
            id=name,
            text=snapshot.tokenizer.decode(
                text.tokens_TM[text.documents_T == row].reshape(-1)
            ),
        )
        for row, name in enumerate(text.ids)
    ]
    again = held_out.text_of(documents, snapshot.tokenizer, snapshot.chunk_len)
    assert again.fingerprint == text.fingerprint
    np.testing.assert_array_equal(again.documents_T, text.documents_T)
    np.testing.assert_array_equal(again.words_D, text.words_D)
    assert text.words_D.tolist() == [len(each.text.split()) for each in documents]
    assert text.page_bytes_D.tolist() == [len(each.text.encode()) for each in documents]


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_all_text_is_scored_once_at_any_stride(tiny_database, cfg, text, stride):
    found = held_out.HeldOut(text, tiny_database.snapshot, cfg, stride=stride)
    scored = sum(int(batch["loss_weights_BL"].sum()) for batch in found.in_order(8))
    # But the first token of each document.
    assert scored == text.lengths_T.sum() - len(text.ids)


def test_a_part_of_a_database_is_all_that_is_found(tiny_database, cfg, text):
    snapshot, before = tiny_database.snapshot, None
    for share in (0.1, 0.5, 1.0):
        part = held_out.HeldOut(text, snapshot, cfg, share=share)
        ids = [batch["neighbour_ids_BCN"].reshape(-1) for batch in part.in_order(8)]
        read = set(np.concatenate(ids).tolist()) - {-1}
        documents = set(snapshot.document_of_chunk[sorted(read)].tolist())
        allowed = set(np.flatnonzero(part._is_read_D).tolist())
        assert documents <= allowed
        assert len(allowed) == round(share * len(snapshot.documents()))
        assert before is None or before < allowed
        before = allowed
    assert part.num_read == len(snapshot.searchable)


def test_more_neighbours_are_found_than_the_database_keeps(tiny_database, cfg, text):
    wide = dataclasses.replace(cfg, num_neighbours=12, candidates=12)
    batch = next(held_out.HeldOut(text, tiny_database.snapshot, wide).in_order(4))
    near = next(held_out.HeldOut(text, tiny_database.snapshot, cfg).in_order(4))
    ids_BCN = batch["neighbour_ids_BCN"]
    count = near["neighbour_ids_BCN"].shape[-1]
    np.testing.assert_array_equal(ids_BCN[..., :count], near["neighbour_ids_BCN"])
    assert (ids_BCN[batch["documents_BC"] >= 0] >= 0).all()
    distances = batch["neighbour_distances_BCN"][batch["documents_BC"] >= 0]
    assert (np.diff(distances) >= 0).all()


def test_a_stride_that_leaves_text_out_is_refused(tiny_database, cfg, text):
    with pytest.raises(ValueError, match=r"stride_chunks 5 is more than .* 4"):
        held_out.HeldOut(text, tiny_database.snapshot, cfg, stride=5)
