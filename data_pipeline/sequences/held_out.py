"""Held-out text as sequences whose neighbours are searched when they are read.

So any text can be measured against any database, with any number of neighbours, any part
of the database and any stride, and nothing is built for it. The batches are those of
`batches.Sequences`, to the number.

Letters here: D documents, T chunks of the held-out text, A chunks that are searched for.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Int

from data_pipeline.config import DataConfig
from data_pipeline.database import Snapshot
from data_pipeline.database.neighbours import exact_neighbours
from data_pipeline.embedding.chunk_vectors import embed_chunks
from data_pipeline.sequences import packing
from data_pipeline.sequences.batches import Batch, named, padded
from data_pipeline.text.chunks import cut_document
from data_pipeline.text.documents import Document
from data_pipeline.text.readers import wikitext
from data_pipeline.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """The chunks of some documents, in memory, and how many words the documents have.

    Attributes:
        tokens_TM: of each chunk, padded.
        lengths_T: how many of them are no padding.
        documents_T: row of each chunk's document, ascending.
        ids: of the documents, by row.
        words_D: of the text that is scored, by row; white space parts them.
        page_words_D: of the page as it was read; of WikiText it differs from what is scored.
        page_bytes_D: UTF-8 bytes of that page.
    """

    tokens_TM: Int[np.ndarray, "T M"]
    lengths_T: Int[np.ndarray, " T"]
    documents_T: Int[np.ndarray, " T"]
    ids: tuple[str, ...]
    words_D: Int[np.ndarray, " D"]
    page_words_D: Int[np.ndarray, " D"]
    page_bytes_D: Int[np.ndarray, " D"]

    def __len__(self) -> int:
        return len(self.lengths_T)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any token and any document's id."""
        sums = hashlib.sha256(self.tokens_TM.tobytes() + self.lengths_T.tobytes())
        sums.update(repr(self.ids).encode())
        return sums.hexdigest()[:16]

    def take(self, column: str, ids_T: Int[np.ndarray, "..."]) -> np.ndarray:
        """Rows of `tokens`, `lengths` or `documents`, by chunk id."""
        columns = {
            "tokens": self.tokens_TM,
            "lengths": self.lengths_T,
            "documents": self.documents_T,
        }
        return columns[column][ids_T]


def text_of(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    chunk_len: int,
    *,
    detokenise: bool = False,
) -> Text:
    """Cuts documents into chunks as a build does.

    Args:
        detokenise: score WikiText as its authors wrote it, as others do (`wikitext.py`).
    """
    chunks: list[tuple[np.ndarray, np.ndarray]] = []
    ids, counts = [], []
    for document in documents:
        page = document.text
        text = wikitext.detokenised(page) if detokenise else page
        tokens_TM, lengths_T, _ = cut_document(text, tokenizer, chunk_len)
        chunks.append((tokens_TM, lengths_T))
        ids.append(document.id)
        counts.append((len(text.split()), *wikitext.page_size(page)))
    words_D, page_words_D, page_bytes_D = np.array(counts, np.int64).T
    return Text(
        np.concatenate([tokens_TM for tokens_TM, _ in chunks]),
        np.concatenate([lengths_T for _, lengths_T in chunks]),
        np.repeat(np.arange(len(ids)), [len(lengths_T) for _, lengths_T in chunks]),
        tuple(ids),
        words_D,
        page_words_D,
        page_bytes_D,
    )


def text_of_split(database: Snapshot, split: str) -> Text:
    """The text of a database's own held-out split, without deleted documents."""
    table, records = database.chunks(split), database.documents(split)
    of_chunk = table.column("documents")
    kept_T = np.flatnonzero(~database.state.is_deleted(of_chunk, split))
    rows_D, documents_T = np.unique(of_chunk[kept_T], return_inverse=True)
    tokens_TM = table.take("tokens", kept_T).astype(np.int32)
    ends = np.searchsorted(documents_T, np.arange(1, len(rows_D)))
    decoded = [
        database.tokenizer.decode(part.reshape(-1))
        for part in np.split(tokens_TM, ends)
        if len(part)
    ]
    words_D = np.array([len(text.split()) for text in decoded], np.int64)
    sizes = np.array([wikitext.page_size(text) for text in decoded], np.int64)
    sizes = sizes.reshape(-1, 2)
    return Text(
        tokens_TM,
        table.take("lengths", kept_T),
        documents_T.astype(np.int64),
        tuple(records.column("id").take(rows_D).to_pylist()),
        words_D,
        sizes[:, 0],
        sizes[:, 1],
    )


class HeldOut:
    """Sequences of held-out text with their neighbours in a database.

    Attributes:
        text: what is measured.
        database: where neighbours come from.
    """

    def __init__(
        self,
        text: Text,
        database: Snapshot,
        cfg: DataConfig,
        *,
        stride: int = 0,
        share: float = 1.0,
        seed: int = 0,
    ):
        """Searches nothing yet.

        Args:
            cfg: how long sequences are, and how many neighbours a chunk has.
            stride: chunks from one sequence's start to the next; half a sequence, if 0.
            share: of the database's documents, which are searched; smaller shares are
                parts of larger ones.
            seed: of the documents that are drawn.
        Raises:
            ValueError: if the stride is longer than a sequence.
        """
        stride = stride or max(cfg.sequence_chunks // 2, 1)
        if stride > cfg.sequence_chunks:
            raise ValueError(
                f"evaluation.stride_chunks {stride} is more than data.sequence_chunks "
                f"{cfg.sequence_chunks}: text between windows would not be measured"
            )
        self.text, self.database = text, database
        self._cfg, self._stride = cfg, stride
        rows_D, first_D, counts_D = np.unique(
            text.documents_T, return_index=True, return_counts=True
        )
        self._ids_SC = packing.windows(
            rows_D,
            first_D,
            counts_D,
            cfg.sequence_chunks,
            stride,
            keep_incomplete=True,
        )
        self._is_read_D = _drawn(len(database.documents()), share, seed)
        # What was searched for is kept: every condition reads the same.
        shape = (len(text), cfg.num_neighbours)
        self._is_found_T = np.zeros(len(text), bool)
        self._neighbours_TN = np.full(shape, -1, np.int64)
        self._distances_TN = np.full(shape, np.inf, np.float32)

    def __len__(self) -> int:
        return len(self._ids_SC)

    @property
    def num_read(self) -> int:
        """How many chunks of the database can be found."""
        ids_T = self.database.searchable
        return int(self._is_read_D[self.database.document_of_chunk[ids_T]].sum())

    def in_order(self, batch_size: int, *, every: int = 1) -> Iterator[Batch]:
        """All sequences once, in order; the last batch is filled up with padding.

        Args:
            every: 3 gives one sequence of three, from all over the text.
        """
        chosen_S = np.arange(len(self))[every // 2 :: every]
        for start in range(0, len(chosen_S), batch_size):
            yield padded(
                named(self._sequences(chosen_S[start:][:batch_size])), batch_size
            )

    def _sequences(self, chosen_B: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        cfg, ids_BC = self._cfg, self._ids_SC[chosen_B]
        overlap = (cfg.sequence_chunks - self._stride) * cfg.chunk_len
        text = packing.texts(
            self.text,
            self.database.tokenizer.token_bytes_V,
            cfg,
            ids_BC,
            np.where(chosen_B > 0, overlap, 0),
        )
        self._search(np.unique(ids_BC[ids_BC >= 0]))
        there_BC1 = (ids_BC >= 0)[..., None]
        found_BCN = np.where(there_BC1, self._neighbours_TN[ids_BC], -1)
        distances_BCN = np.where(there_BC1, self._distances_TN[ids_BC], np.inf)
        return {
            **text,
            **packing.passages(
                self.database, cfg, found_BCN, distances_BCN.astype(np.float32)
            ),
        }

    def _search(self, wanted_A: Int[np.ndarray, " A"]) -> None:
        """Finds the neighbours of chunks that were not searched for before."""
        database, new_A = self.database, wanted_A[~self._is_found_T[wanted_A]]
        if not len(new_A):
            return
        vectors_AW = embed_chunks(
            self.text.tokens_TM[new_A], database.tokenizer, database.embedder
        )
        document_of = database.document_of_chunk

        def allowed(_, ids: np.ndarray) -> np.ndarray:
            rows = document_of[ids]
            return self._is_read_D[rows] & ~database.state.is_deleted(rows)

        ids_AN, distances_AN = exact_neighbours(
            database.index(),
            vectors_AW,
            self._cfg.num_neighbours,
            allowed,
            database.vectors,
        )
        self._neighbours_TN[new_A], self._distances_TN[new_A] = ids_AN, distances_AN
        self._is_found_T[new_A] = True


def _drawn(num_documents: int, share: float, seed: int) -> Bool[np.ndarray, " D"]:
    order_D = np.random.default_rng(seed).permutation(num_documents)
    return order_D < round(share * num_documents)
