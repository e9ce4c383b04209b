"""Continuations of a text, each with the passages that were read for it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np

from data_pipeline.database import Database, Found
from data_pipeline.storage.printing import check_output, printable_line
from experiments.config import Experiment
from experiments.jobs import chat, reading
from experiments.jobs.remote_database import NoDatabase, RemoteDatabase
from retro_jax import generation
from retro_jax.config import ModelConfig
from retro_jax.model import parameters
from retro_jax.training.encodings import Encodings

_PROMPT_CHUNKS = 2  # of a held-out document; the chunk after them is shown as the truth


def continuation(
    cfg: Experiment,
    params: parameters.Parameters,
    database: Database | RemoteDatabase | NoDatabase,
    prompt: str,
    limits: reading.Limits = reading.ALL,
) -> dict:
    """The text that follows a prompt and its sources, as JSON.

    Raises:
        ValueError: for a prompt of nothing but white space.
    """
    if not prompt.strip():
        raise ValueError(
            "no prompt: retro generate 'TEXT' (make generate PROMPT='TEXT') continues one"
        )
    tokenizer, retriever = database.tokenizer, None
    retrieves = cfg.evaluation.retrieval and bool(cfg.model.cca_layers)
    if retrieves and not isinstance(database, NoDatabase):
        retriever = database
    tokens, end_id = tokenizer.encode(prompt), tokenizer.eod_id
    if cfg.evaluation.chat:
        tokens, end_id = chat.conversation(tokenizer, prompt)
    made = generation.generate(
        cfg.model,
        params,
        tokens,
        retriever and reading.NearRetriever(retriever, limits),
        num_tokens=cfg.evaluation.sample_tokens,
        window_chunks=cfg.data.sequence_chunks,
        num_neighbours=cfg.data.num_neighbours,
        eod_id=end_id,
        temperature=cfg.evaluation.temperature,
        top_p=cfg.evaluation.top_p,
        seed=cfg.evaluation.seed,
        vocab_size=tokenizer.vocab_size,
        encodings=_encodings(cfg),
    )
    return {
        "prompt": prompt,
        "text": tokenizer.decode(made.tokens),
        "retrieval": cfg.evaluation.retrieval,
        "sources": [
            dataclasses.asdict(found)
            for source in made.sources
            # The others were read for the prompt alone.
            if source.stop > len(tokens) and retriever is not None
            for found in _passages(retriever, source)
        ],
    }


@functools.cache
def _kept(model: ModelConfig, most_bytes: int) -> Encodings:
    return Encodings(model, most_bytes)


def _encodings(cfg: Experiment) -> Encodings | None:
    """What keeps passages as a decoder has read them: they are read for every token."""
    if cfg.model.encoder != "decoder" or not cfg.train.encodings_bytes:
        return None
    return _kept(dataclasses.replace(cfg.model), cfg.train.encodings_bytes)


def _passages(
    database: Database | RemoteDatabase, source: generation.Source
) -> Iterator[Found]:
    """The passages of a source; neighbours that are absent have no chunk."""
    for chunk_id, distance in zip(source.chunk_ids_N, source.distances_N, strict=True):
        if chunk_id >= 0:
            yield database.found(int(chunk_id), float(distance))


def of_held_out(
    cfg: Experiment,
    params: parameters.Parameters,
    database: Database,
    limits: reading.Limits = reading.ALL,
) -> Iterator[dict]:
    """Continuations of text from held-out documents, with what really follows.

    They start in the middle of each document: openings are licences and imports, which
    are the same everywhere.
    """
    split, chunk_len = cfg.evaluation.split, cfg.model.chunk_len
    table, decode = database.snapshot.chunks(split), database.tokenizer.decode
    rows, first, counts = np.unique(
        table.column("documents"), return_index=True, return_counts=True
    )
    long_enough = np.flatnonzero(counts > _PROMPT_CHUNKS + 1)
    rng = np.random.default_rng(cfg.evaluation.seed)
    for place in rng.permutation(long_enough)[: cfg.evaluation.num_samples]:
        middle = (counts[place] - _PROMPT_CHUNKS - 1) // 2
        ids = first[place] + middle + np.arange(_PROMPT_CHUNKS + 1)
        tokens = table.take("tokens", ids).reshape(-1)
        prompt_len = _PROMPT_CHUNKS * chunk_len
        sample = continuation(
            cfg, params, database, decode(tokens[:prompt_len]), limits
        )
        sample["truth"] = decode(tokens[prompt_len:])
        document = database.snapshot.documents(split).slice(int(rows[place]), 1)
        sample["document"] = document.to_pylist()[0]
        yield sample


def print_continuation(sample: dict, say: Callable[[str], None]) -> None:
    """Prints the text with its sources below, for a terminal or a log."""
    say(f"\n{sample['prompt']} >>> {sample['text']}\n")
    for number, source in enumerate(sample["sources"], start=1):
        passage = " ".join((source["text"] + source["continuation"]).split())
        name, title = source["document_id"], source["title"]
        say(printable_line(f"[{number}] {name}  {title}"))
        place = printable_line(f"{source['uri']}, byte {source['offset']:,}")
        say(f"    {place}, distance {source['distance']:.3f}")
        say(f"    {passage[:300]}")
    if not sample["retrieval"]:
        say("(no sources: retrieval is off, by evaluation.retrieval)")
    elif not sample["sources"]:
        say("(no sources: nothing was retrieved)")
    check_output()
