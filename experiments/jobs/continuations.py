"""Continuations of a text, each with the passages that were read for it."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterator

import numpy as np

from data_pipeline.database import Database
from data_pipeline.storage.printing import check_output, printable_line
from data_pipeline.text.tokenizer import Tokenizer
from experiments.config import Experiment
from experiments.jobs import chat, reading
from experiments.jobs.remote_database import NoDatabase, RemoteDatabase
from retro_jax import generation
from retro_jax.config import ModelConfig
from retro_jax.model import parameters
from retro_jax.numerics.sampling import Sampling
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
    [made] = generation.generate(
        cfg.model,
        params,
        [tokens],
        retriever and reading.NearRetriever(retriever, limits),
        num_tokens=cfg.evaluation.sample_tokens,
        window_chunks=cfg.data.sequence_chunks,
        num_neighbours=cfg.data.num_neighbours,
        eod_id=end_id,
        settings=[_sampling(cfg)],
        vocab_size=tokenizer.vocab_size,
        encodings=encodings(cfg),
        stop=functools.partial(_kept_tokens, tokenizer, cfg.evaluation.stop),
        effects=cfg.evaluation.effects,
        overlapped=cfg.evaluation.overlapped,
    )
    # The others were read for the prompt alone.
    read = [source for source in made.sources if source.stop > len(tokens)]
    chunks = []
    if retriever is not None:
        chunks = [
            _chunk(tokenizer, made, source, len(tokens), retriever) for source in read
        ]
    return {
        "prompt": prompt,
        "text": _before_stop(tokenizer.decode(made.tokens), cfg.evaluation.stop),
        "finish": made.finish,
        "log_prob": float(made.log_probs.sum()),
        "retrieval": cfg.evaluation.retrieval,
        "sources": [source for chunk in chunks for source in chunk["sources"]],
        "chunks": chunks,
    }


def _sampling(cfg: Experiment) -> Sampling:
    names = [field.name for field in dataclasses.fields(Sampling)]
    return Sampling(**{name: getattr(cfg.evaluation, name) for name in names})


def _before_stop(text: str, stops: tuple[str, ...]) -> str:
    """The text up to the first of the texts that end it."""
    return text[
        : min([text.find(stop) for stop in stops if stop in text] + [len(text)])
    ]


def _kept_tokens(tokenizer: Tokenizer, stops: tuple[str, ...], tokens) -> int | None:
    """How many tokens are kept of a text that holds what ends it; None if it goes on.

    The last of them may hold the beginning of it, or all.
    """
    if not any(stop in tokenizer.decode(tokens) for stop in stops):
        return None
    least, most = 1, len(tokens)
    while least < most:
        middle = (least + most) // 2
        text = tokenizer.decode(tokens[:middle])
        if any(stop in text for stop in stops):
            most = middle
        else:
            least = middle + 1
    return least


def _chunk(
    tokenizer: Tokenizer,
    made: generation.Generated,
    source: generation.Source,
    prompt_len: int,
    database: Database | RemoteDatabase,
) -> dict:
    """Some new tokens with the passages that they could read, as JSON."""
    start, stop = max(source.start - prompt_len, 0), source.stop - prompt_len
    text = tokenizer.decode(made.tokens[start:stop])
    return {
        "text": text,
        "log_prob": float(made.log_probs[start:stop].sum()),
        "problem": source.problem,
        "sources": [*_passages(database, source, text)],
    }


@functools.cache
def _kept(model: ModelConfig, most_bytes: int) -> Encodings:
    return Encodings(model, most_bytes)


def encodings(cfg: Experiment) -> Encodings | None:
    """What keeps passages as a decoder has read them: they are read for every token."""
    if cfg.model.encoder != "decoder" or not cfg.train.encodings_bytes:
        return None
    return _kept(dataclasses.replace(cfg.model), cfg.train.encodings_bytes)


def _passages(
    database: Database | RemoteDatabase, source: generation.Source, text: str
) -> Iterator[dict]:
    """The passages of a source and what speaks for them; absent ones have no chunk.

    `attention` is a passage's share of cross-attention, `effect` how much likelier it made
    the text, in nats, and `verbatim` the longest part of the text that stands in it.
    """
    for place, chunk_id in enumerate(source.chunk_ids_N):
        if chunk_id < 0:
            continue
        found = database.found(int(chunk_id), float(source.distances_N[place]))
        attention_N, effects_N = source.attention_N, source.effects_N
        yield {
            **dataclasses.asdict(found),
            "attention": None if attention_N is None else float(attention_N[place]),
            "effect": None if effects_N is None else float(effects_N[place]),
            "verbatim": shared(text, found.text + found.continuation),
        }


def shared(text: str, passage: str) -> str:
    """The longest part of a text that stands in a passage, word for word."""
    matcher = difflib.SequenceMatcher(None, text, passage, autojunk=False)
    match = matcher.find_longest_match()
    return text[match.a : match.a + match.size]


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
        say(f"    {place}, distance {source['distance']:.3f}{_evidence(source)}")
        say(f"    {passage[:300]}")
    problems = {chunk["problem"] for chunk in sample["chunks"]} - {None}
    for problem in sorted(problems):
        say(printable_line(f"(went on without passages: {problem})"))
    if not sample["retrieval"]:
        say("(no sources: retrieval is off, by evaluation.retrieval)")
    elif not sample["sources"]:
        say("(no sources: nothing was retrieved)")
    check_output()


_LEAST_VERBATIM = 12  # characters; shorter ones stand anywhere


def _evidence(source: dict) -> str:
    """What speaks for a passage, as far as it is known."""
    said = ""
    if source["attention"] is not None:
        said += f", attention {source['attention']:.0%}"
    if source["effect"] is not None:
        said += f", effect {source['effect']:+.2f} nats"
    verbatim = " ".join(source["verbatim"].split())
    if len(verbatim) >= _LEAST_VERBATIM:
        said += printable_line(f", word for word: {verbatim[:80]!r}")
    return said
