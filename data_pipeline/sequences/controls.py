"""Other passages in place of those that were found: what a gain is compared with.

Each function gives batches of the same text. What was absent stays absent.

Letters here: S sequences of all batches.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int

from data_pipeline.database import Snapshot
from data_pipeline.sequences.batches import Batch

_FOUND = (
    "neighbours_BCNR",
    "neighbour_lengths_BCN",
    "neighbour_ids_BCN",
    "neighbour_distances_BCN",
)


def with_random_neighbours(
    batches: Iterable[Batch], snapshot: Snapshot, seed: int
) -> Iterator[Batch]:
    """Every neighbour replaced by a passage drawn from the database.

    As many as there were and just as absent where they were; never the same passage.
    """
    rng = np.random.default_rng(seed)
    ids_T = snapshot.searchable
    for batch in batches:
        ids = batch["neighbour_ids_BCN"]
        places = np.searchsorted(ids_T, np.maximum(ids, 0))
        places += rng.integers(1, max(len(ids_T), 2), ids.shape)
        drawn = np.where(ids >= 0, ids_T[places % len(ids_T)], -1)
        yield _with_ids(batch, snapshot, drawn)


def with_shuffled_neighbours(
    batches: Iterable[Batch], found: Iterable[Batch], snapshot: Snapshot, seed: int
) -> Iterator[Batch]:
    """Every sequence with the neighbours of another one, of no document of its own.

    These were found for text of the same corpus, so they are as near, as long and as much of
    one subject as its own are. A sequence that shares a document with all others has none.

    Args:
        found: the same batches, from which the ids of all neighbours are read beforehand.
        seed: of the sequences that are drawn.
    """
    ids_SCN, documents_SC = _ids_and_documents(found)
    partner_S = _partners(documents_SC, np.random.default_rng(seed))
    start = 0
    for batch in batches:
        own = batch["neighbour_ids_BCN"]
        of_others = partner_S[start : start + len(own)]
        ids = np.where((of_others >= 0)[:, None, None], ids_SCN[of_others], -1)
        start += len(own)
        yield _with_ids(batch, snapshot, np.where(own >= 0, ids, -1))


def _ids_and_documents(found: Iterable[Batch]):
    parts = [(batch["neighbour_ids_BCN"], batch["documents_BC"]) for batch in found]
    ids, documents = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(documents)


def _partners(
    documents_SC: Int[np.ndarray, "S C"], rng: np.random.Generator
) -> Int[np.ndarray, " S"]:
    """A sequence for each that has none of its documents; -1 if there is none.

    Documents stand in order, so most of those that are far away will do.
    """
    real_S = np.flatnonzero((documents_SC >= 0).any(axis=1))
    found_S = np.full(len(documents_SC), -1)
    for row in real_S:
        own = documents_SC[row][documents_SC[row] >= 0]
        shares = np.isin(documents_SC[real_S], own).any(axis=1)
        if not shares.all():
            found_S[row] = rng.choice(real_S[~shares])
    return found_S


def with_matches_alone(batches: Iterable[Batch], chunk_len: int) -> Iterator[Batch]:
    """Every neighbour cut behind the chunk that was found: [N] without [F]."""
    for batch in batches:
        lengths_BCN = np.minimum(batch["neighbour_lengths_BCN"], chunk_len)
        yield {**batch, "neighbour_lengths_BCN": lengths_BCN}


def with_continuations_alone(
    batches: Iterable[Batch], chunk_len: int
) -> Iterator[Batch]:
    """Every neighbour without the chunk that was found: [F] without [N].

    It begins where a passage begins, as it would in training without matches.
    """
    for batch in batches:
        tokens_BCNR = np.zeros_like(batch["neighbours_BCNR"])
        rest = batch["neighbours_BCNR"][..., chunk_len:]
        tokens_BCNR[..., : rest.shape[-1]] = rest
        yield {
            **batch,
            "neighbours_BCNR": tokens_BCNR,
            "neighbour_lengths_BCN": np.maximum(
                batch["neighbour_lengths_BCN"] - chunk_len, 0
            ),
        }


def with_true_text(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The first neighbour of each chunk replaced by the chunk itself and what follows it.

    A canary: so much would be gained if the text that is measured stood in the database.
    """
    for batch in batches:
        num_chunks = batch["documents_BC"].shape[1]
        tokens_BCNR = batch["neighbours_BCNR"].copy()
        lengths_BCN = batch["neighbour_lengths_BCN"].copy()
        distances_BCN = batch["neighbour_distances_BCN"].copy()
        length, passage_len = batch["inputs_BL"].shape[1], tokens_BCNR.shape[-1]
        for chunk in range(num_chunks):
            start = chunk * (length // num_chunks)
            there = slice(start, min(start + passage_len, length))
            segments_BR = batch["segments_BL"][:, there]
            # It ends with its document.
            is_own_BR = (segments_BR == segments_BR[:, :1]) & (segments_BR > 0)
            tokens_BR = np.where(is_own_BR, batch["inputs_BL"][:, there], 0)
            tokens_BCNR[:, chunk, 0] = 0
            tokens_BCNR[:, chunk, 0, : tokens_BR.shape[1]] = tokens_BR
            lengths_BCN[:, chunk, 0] = is_own_BR.sum(axis=1)
            distances_BCN[:, chunk, 0] = 0.0
        yield {
            **batch,
            "neighbours_BCNR": tokens_BCNR,
            "neighbour_lengths_BCN": lengths_BCN,
            "neighbour_distances_BCN": distances_BCN,
        }


def with_stale_neighbours(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Every chunk with the neighbours of the chunk before it.

    So overlapped retrieval reads them: they are looked for while the chunk is written. The
    first chunk of a document, and of a sequence, keeps its own, as the end of a prompt does.
    """
    for batch in batches:
        documents_BC = batch["documents_BC"]
        before_BC = np.tile(np.arange(documents_BC.shape[1]), (len(documents_BC), 1))
        before_BC[:, 1:] -= documents_BC[:, 1:] == documents_BC[:, :-1]
        rows_B1 = np.arange(len(documents_BC))[:, None]
        yield {**batch, **{name: batch[name][rows_B1, before_BC] for name in _FOUND}}


def with_fewer_neighbours(batches: Iterable[Batch], most: int) -> Iterator[Batch]:
    """The nearest so many neighbours of each chunk, at least one."""
    for batch in batches:
        yield {**batch, **{name: batch[name][:, :, :most] for name in _FOUND}}


def _with_ids(batch: Batch, snapshot: Snapshot, ids_BCN: np.ndarray) -> Batch:
    """The batch with the passages of these chunks; -1 is none."""
    passage_len = batch["neighbours_BCNR"].shape[-1]
    tokens, lengths = snapshot.chunks().passages(ids_BCN, passage_len)
    return {
        **batch,
        "neighbours_BCNR": tokens,
        "neighbour_lengths_BCN": lengths,
        "neighbour_ids_BCN": ids_BCN,
    }
