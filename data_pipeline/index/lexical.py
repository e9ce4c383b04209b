"""Finds chunks by their words: BM25, beside the index of vectors.

An embedding says what a text is about and loses its rare words: an identifier, a number, a
name. BM25 knows nothing else. A shard is a folder:

    ids.npy      (T,) int64, ascending: the chunk that each row stands for
    facts.json   how many chunks and how many different words
    *.index.*    bm25s's own arrays, parameters and vocabulary, if there are words: no pickle

Words are those of `text/words.py`, with neither stemming nor stop words: what BM25 finds
here is the exact word. Scripts that write no spaces are found by characters and by pairs.
"""

import contextlib
import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int64

from data_pipeline.storage.extras import install_command
from data_pipeline.storage.files import read_json, write_json
from data_pipeline.storage.mapped_arrays import open_array
from data_pipeline.text.chunks import ChunkTable
from data_pipeline.text.tokenizer import Tokenizer
from data_pipeline.text.words import rest_of_word, search_terms

# What the files depend on, for a build to know.
SETTINGS = {"method": "lucene", "k1": 1.5, "b": 0.75}
_ARRAYS = ("data", "indices", "indptr")
_TEXTS_AT_ONCE = 1024


def import_bm25s() -> Any:
    """Imports bm25s without JAX.

    bm25s takes JAX where it finds it and starts its devices at once, which belong to others.

    Raises:
        ImportError: naming the extra, where there is no bm25s.
    """
    try:
        with _without_jax():
            bm25s = importlib.import_module("bm25s")
    except ImportError as error:
        raise ImportError(
            f"search by words needs bm25s ({error}): {install_command('hybrid')}"
        ) from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


@contextlib.contextmanager
def _without_jax() -> Iterator[None]:
    missing = object()
    jax: Any = sys.modules.get("jax", missing)
    sys.modules["jax"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if jax is missing:
            del sys.modules["jax"]
        else:
            sys.modules["jax"] = jax


def texts_of(
    table: ChunkTable, ids_T: Int[np.ndarray, " T"], tokenizer: Tokenizer
) -> Iterator[str]:
    """The texts of chunks, each with the rest of the word that its end cuts.

    Rare words are of many tokens, so it is them that are cut.
    """
    for start in range(0, len(ids_T), _TEXTS_AT_ONCE):
        block = ids_T[start : start + _TEXTS_AT_ONCE]
        chunk_len = table.take("tokens", block).shape[1]
        tokens_TR, lengths_T = table.passages(block, 2 * chunk_len)
        for tokens_R, length in zip(tokens_TR, lengths_T, strict=True):
            text = tokenizer.decode(tokens_R[: min(length, chunk_len)])
            following = tokenizer.decode(tokens_R[chunk_len:length])
            yield text + rest_of_word(text, following)


def write_shard(
    folder: Path, ids_T: Int64[np.ndarray, " T"], texts: Iterable[str]
) -> None:
    """Indexes the texts of chunks and writes the files of a shard.

    The same texts give the same files: words are numbered in their order.

    Source: Robertson et al. 1994 (BM25), in Lucene's form; scores computed before any
        query: Lù 2024 (arXiv 2407.03618).
    """
    words_of = [search_terms(text) for text in texts]
    vocabulary = {w: i for i, w in enumerate(sorted(set().union(*words_of)))}
    np.save(folder / "ids.npy", ids_T, allow_pickle=False)
    write_json(folder / "facts.json", {"chunks": len(ids_T), "words": len(vocabulary)})
    if not vocabulary:
        return
    made = import_bm25s().BM25(**SETTINGS)
    numbers = [[vocabulary[word] for word in words_T] for words_T in words_of]
    made.index((numbers, vocabulary), create_empty_token=False, show_progress=False)
    made.save(folder, allow_pickle=False, show_progress=False)


class LexicalShard:
    """The words of some chunks; postings stay on disk, the vocabulary is in memory."""

    def __init__(self, folder: Path):
        """Opens a shard; ValueError naming the folder if its files do not fit together."""
        self.ids_T = open_array(folder / "ids.npy")
        facts = read_json(folder / "facts.json") or {}
        if facts.get("chunks") != len(self.ids_T):
            raise ValueError(f"{folder} is damaged: build it again")
        self._bm25 = _load(folder, len(self.ids_T)) if facts.get("words") else None
        if self._bm25 is not None and not _fits(self._bm25, facts):
            raise ValueError(f"{folder} is damaged: build it again")

    def search(
        self, query_words: Sequence[str], k: int, allowed_T: np.ndarray
    ) -> tuple[Int64[np.ndarray, " N"], Float[np.ndarray, " N"]]:
        """Ids and scores of at most k allowed chunks that share a word; best first."""
        scores_T = np.zeros(len(self.ids_T), np.float32)
        if self._bm25 is not None:
            numbers = self._bm25.get_tokens_ids(query_words)
            scores_T = self._bm25.get_scores_from_ids(numbers)
        rows = np.flatnonzero((scores_T > 0) & allowed_T)
        if len(rows) > k:
            kth = np.partition(scores_T[rows], len(rows) - k)[len(rows) - k]
            rows = rows[scores_T[rows] >= kth]
        best = rows[np.lexsort((rows, -scores_T[rows]))[:k]]
        return np.asarray(self.ids_T[best]), scores_T[best]


class Lexical:
    """Shards searched as one.

    Each has its own statistics of words, as the shards of a search engine do: scores of
    different shards are compared as they are.
    """

    def __init__(self, folders: Sequence[Path]):
        """Opens the shards; ValueError naming what is damaged."""
        self.shards = [LexicalShard(folder) for folder in folders]

    def search(
        self,
        texts: Sequence[str],
        k: int,
        allowed: Callable[[None, np.ndarray], np.ndarray] = lambda _, ids: ids >= 0,
    ) -> tuple[Int[np.ndarray, "Q N"], Float[np.ndarray, "Q N"]]:
        """The k best chunks of each text by BM25, equal ones by id.

        Args:
            texts: queries; one without words finds nothing.
            k: at least 1.
            allowed: `find_neighbours`' filter, called once a shard with None for the
                queries; False forbids a chunk.
        Returns:
            Chunk ids, -1 where no more share a word, and scores, 0 there.
        """
        allowed_of = [allowed(None, np.asarray(shard.ids_T)) for shard in self.shards]
        ids_QN = np.full((len(texts), k), -1, np.int64)
        scores_QN = np.zeros((len(texts), k), np.float32)
        for query, text in enumerate(texts):
            found = [
                shard.search(search_terms(text), k, allowed_T)
                for shard, allowed_T in zip(self.shards, allowed_of, strict=True)
            ]
            ids = np.concatenate([ids for ids, _ in found] or [ids_QN[0, :0]])
            scores = np.concatenate([s for _, s in found] or [scores_QN[0, :0]])
            best = np.lexsort((ids, -scores))[:k]
            ids_QN[query, : len(best)] = ids[best]
            scores_QN[query, : len(best)] = scores[best]
        return ids_QN, scores_QN


def _load(folder: Path, num_chunks: int) -> Any:
    """Opens what `write_shard` saved; bm25s's own loading keeps a descriptor an array."""
    try:
        vocabulary = json.loads((folder / "vocab.index.json").read_text("utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing: build it again") from error
    except ValueError as error:
        raise ValueError(f"{folder} is damaged ({error}): build it again") from error
    made = import_bm25s().BM25(**SETTINGS)
    arrays = {name: open_array(folder / f"{name}.csc.index.npy") for name in _ARRAYS}
    made.scores = {**arrays, "num_docs": num_chunks}
    made.vocab_dict, made.nonoccurrence_array = vocabulary, None
    return made


def _fits(bm25: Any, facts: dict) -> bool:
    """Whether no array can be read past its end."""
    ends, rows = bm25.scores["indptr"], bm25.scores["indices"]
    return bool(
        isinstance(bm25.vocab_dict, dict)
        and len(bm25.vocab_dict) == facts["words"] == len(ends) - 1
        and ends[-1] == len(rows) == len(bm25.scores["data"])
    )
