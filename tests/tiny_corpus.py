"""Sixty documents with planted repetition, and the database that tests share."""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.build import pipeline
from data_pipeline.config import DataConfig
from data_pipeline.database import Database
from data_pipeline.text.copies.deduplicate import digest, split_of
from tests.toy_embedder import in_place_of_all as toy_embedder
from tools.faults.kills import contents

__all__ = ["contents", "toy_embedder"]
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.15
NUM_TOPICS = 6
# Stands in one training document alone.
PLANTED = "seven purple umbrellas waltzed beneath the quiet observatory"
PLANTED_IN = "planted"
# A document that owns the nearest entries of all of its own chunks.
MONOTONE = "monotone"
NEAR_COPY = "near-copy"


def texts() -> dict[str, str]:
    """Document id -> text; the documents of a topic share whole sentences."""
    rng = np.random.default_rng(0)
    stock = [[_sentence(rng, topic) for _ in range(5)] for topic in range(NUM_TOPICS)]
    found = {}
    for number in range(56):
        topic = number % NUM_TOPICS
        shared = [stock[topic][place] for place in rng.permutation(5)[:2]]
        others = [_sentence(rng, topic) for _ in range(rng.integers(1, 7))]
        sentences = rng.permutation(np.array(shared + others, dtype=object))
        found[f"document-{number:02d}"] = " ".join(sentences)
    own = " ".join(_sentence(rng, 2) for _ in range(2))
    found[PLANTED_IN] = _in_split("train", f"{own} {PLANTED}. {own[::-1]}")
    found[MONOTONE] = _in_split("train", "the same again and again, " * 20)
    held_out = " ".join(_sentence(rng, 3) for _ in range(12))
    found["held-out"] = _in_split("test", held_out)
    found[NEAR_COPY] = _in_split("train", found["held-out"])
    return found


def _sentence(rng: np.random.Generator, topic: int) -> str:
    letters = "abcdefghijklmnoprstuvwy"[topic * 3 : topic * 3 + 8]
    words = [
        "".join(rng.choice(list(letters), rng.integers(2, 8)))
        for _ in range(rng.integers(5, 11))
    ]
    return " ".join(words).capitalize() + "."


def _in_split(split: str, text: str) -> str:
    """The text with a number at its end that sends it to a split."""
    candidates = (f"{text} {number}." for number in itertools.count())
    return next(
        candidate
        for candidate in candidates
        if split_of(digest(candidate), VALIDATION_SHARE, TEST_SHARE) == split
    )


def write(folder: Path, documents: dict[str, str] | None = None) -> str:
    """Writes the corpus as three files of JSON lines and gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    records = (documents or texts()).items()
    lines = [json.dumps({"id": name, "text": text}) for name, text in records]
    for number in range(3):
        (folder / f"corpus-{number}.jsonl").write_text("\n".join(lines[number::3]))
    return str(folder)


def config(corpus: str, **changes) -> DataConfig:
    """Chunks of 8 tokens, sequences of 4 chunks, several shards."""
    settings: dict[str, Any] = {
        "corpus": corpus,
        "validation_share": VALIDATION_SHARE,
        "test_share": TEST_SHARE,
        "vocab_size": 400,
        "chunk_len": 8,
        "embedder": "toy",
        "index": "exact",
        "candidates": 6,
        "shard_size_bytes": 4000,
        "sequence_chunks": 4,
        "num_neighbours": 2,
        "neighbour_len": 16,
    }
    return DataConfig(**settings | changes)


@contextmanager
def recorded() -> Iterator[list[tuple[str, str]]]:
    """Collects the stage and the name of every shard that is made."""
    made: list[tuple[str, str]] = []
    run_stage = pipeline.run_stage

    def recording(folder, settings, inputs, shards, work, engine, **rest):
        def recorded_work(shard, shard_folder):
            made.append((folder.name, shard))
            yield from work(shard, shard_folder)

        return run_stage(
            folder, settings, inputs, shards, recorded_work, engine, **rest
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run_stage", recording)
        yield made


def neighbour_ids(database: Database, split: str) -> np.ndarray:
    """Neighbours of all chunks of a split."""
    table = database.snapshot.neighbours(split)
    return table.rows(np.arange(len(table)))[0]
