"""Each token of a database comes once, behind what stands before it in its document."""

import numpy as np

from data_pipeline.sequences.database_texts import DatabaseTexts


def _tokens_by_document(snapshot) -> dict[int, list[int]]:
    """All text of each document, but its first token, which stands behind nothing."""
    chunks, found = snapshot.chunks(), {}
    for number in np.sort(snapshot.searchable):
        only = np.array([number])
        (tokens_R,), (length,) = chunks.passages(only, snapshot.chunk_len)
        (document,) = chunks.take("documents", only)
        found.setdefault(int(document), []).extend(tokens_R[:length].tolist())
    return {document: tokens[1:] for document, tokens in found.items()}


def test_each_token_is_a_key_s_once_and_in_order(tiny_database):
    snapshot = tiny_database.snapshot
    texts = DatabaseTexts(snapshot)
    found = []
    for tokens_PR, behind_PR in texts.blocks():
        assert tokens_PR.shape == behind_PR.shape == (64, 2 * snapshot.chunk_len)
        for row, place in np.argwhere(behind_PR >= 0):
            assert behind_PR[row, place] == tokens_PR[row, place + 1]
            found.append(behind_PR[row, place])
    wanted = _tokens_by_document(snapshot)
    # A first chunk's piece has its own tokens and the next one's.
    assert found == [token for tokens in wanted.values() for token in tokens]


def test_whole_documents_are_drawn_and_no_more_than_asked_for(tiny_database):
    snapshot = tiny_database.snapshot
    half = len(snapshot.searchable) // 2
    some, again, other = (
        DatabaseTexts(snapshot, most_chunks=half, seed=seed) for seed in (0, 0, 1)
    )
    assert 0 < len(some) <= half
    np.testing.assert_array_equal(some._ids_T, again._ids_T)
    assert not np.array_equal(some._ids_T, other._ids_T)
    documents = snapshot.chunks().take("documents", np.sort(snapshot.searchable))
    read = snapshot.chunks().take("documents", some._ids_T)
    for document in np.unique(read):
        assert (read == document).sum() == (documents == document).sum()


def test_what_is_too_large_by_itself_is_passed_over(tiny_database):
    snapshot = tiny_database.snapshot
    documents = snapshot.chunks().take("documents", np.sort(snapshot.searchable))
    _, counts = np.unique(documents, return_counts=True)
    assert counts.min() < counts.max()
    for seed in range(8):  # whichever document is drawn first
        room = int(counts.min())
        assert len(DatabaseTexts(snapshot, most_chunks=room, seed=seed)) == room
    assert len(DatabaseTexts(snapshot, most_chunks=int(counts.min()) - 1)) == 0
