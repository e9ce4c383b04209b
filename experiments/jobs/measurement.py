"""A trained model's loss on held-out text, in conditions side by side.

`experiments/config.py` names them (`CONDITIONS`). All read the same text and are compared document by document.

Letters here: X chunks, D documents.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from data_pipeline.database import Database, Snapshot
from data_pipeline.sequences import controls
from data_pipeline.sequences.batches import Sequences
from data_pipeline.sequences.database_texts import DatabaseTexts
from data_pipeline.sequences.held_out import HeldOut, Text
from data_pipeline.storage.progress import Progress
from experiments.config import Experiment
from experiments.jobs import leakage, reading
from experiments.jobs.kept_losses import KeptLosses
from retro_jax import evaluation, knn_lm
from retro_jax.devices import sharding
from retro_jax.model import flops, parameters, reading_heads
from retro_jax.training.batch import Batch
from retro_jax.training.encodings import Encodings

# In these no passage is the one that was found for the chunk.
_DRAWN = ("random", "shuffled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What is measured, and on what."""

    cfg: Experiment
    params: parameters.Parameters
    mesh: jax.sharding.Mesh
    sequences: Sequences | HeldOut
    database: Database
    untrained: parameters.Parameters | None = None  # a retrofit's, of step 0
    encodings: Encodings | None = None
    limits: reading.Limits = reading.ALL
    text: Text | None = None  # of the sequences, where they are searched for anew
    kept: KeptLosses | None = None  # of this measurement, if it was stopped


def conditions(measured: Measured) -> dict:
    """Bits per byte in each condition, with intervals, as JSON.

    What `evaluation.conditions` names is measured, in that order, and 'off' always. A model
    without cross-attention has 'off' alone. 'prompt' is measured on fewer sequences, with
    all other conditions on the same text.
    """
    cfg, sequences = measured.cfg, measured.sequences
    names = cfg.evaluation.conditions if cfg.has_cca else ()
    # Before anything is measured: there may be none.
    texts = _texts(measured) if "knn" in names else None
    losses = {"off": _losses_or_kept(measured, "off")}
    if not losses["off"].bytes_X.sum():  # a text of one token is followed by its end
        raise ValueError(
            "the held-out text is too short: no byte of it is predicted; give more"
        )
    results: dict = {}
    for name in names:
        if name == "knn" and texts is not None:
            losses[name], results["knn"] = _of_knn_lm(measured, texts)
        elif name != "off" and (name != "untrained" or measured.untrained is not None):
            losses[name] = _losses_or_kept(measured, name)
    longest_X = leakage.longest_runs(cfg, batches(cfg, sequences))
    little_X = leakage.has_little_overlap(cfg, longest_X)
    off, seed = losses["off"], cfg.evaluation.seed
    scored_X = off.tokens_X > 0
    results |= {
        "split": cfg.evaluation.split,
        "held_out": cfg.evaluation.held_out,
        "database": _described(measured.database.snapshot),
        "documents": len(np.unique(off.documents_X[scored_X])),
        "bytes": float(off.bytes_X.sum()),
        "tokens": float(off.tokens_X.sum()),
        "little_overlap_share": float(little_X[scored_X].mean()),
        "conditions": {
            name: {
                **leakage.compared(found, off, seed),
                "little_overlap_bits_per_byte": found.bits_per_byte(little_X),
                "perplexity": found.perplexity(),
            }
            for name, found in losses.items()
        },
        "by_document": _by_document(measured, losses),
    }
    if cfg.model.encoder == "decoder":
        results["gates"] = _gates(measured)
    if measured.text is not None and num_sequences(cfg, sequences) == len(sequences):
        results["per_word"] = _per_word(measured.text, losses)
    if cfg.has_cca:
        results |= _copied(measured, losses, longest_X)
        results |= _curves(measured, losses["off"])
        if cfg.evaluation.prompt_sequences:
            results["prompt"] = _beside_prompts(measured, losses)
    return results


def in_words(results: Mapping) -> str:
    """What was measured, a line for each condition."""
    size = f"documents: {results['documents']}; bytes: {results['bytes']:,.0f}"
    what = "bits per byte and difference to off, with 95 % intervals over documents"
    lines = [f"{size}; {what}"]
    for name, values in results["conditions"].items():
        lines.append(
            f"{name:>12}  {values['bits_per_byte']:.4f} {_ends(values['interval'], '')}  "
            f"{values['minus_off']:+.4f} {_ends(values['minus_off_interval'], '+')}"
        )
    return "\n".join(lines)


def _ends(interval: Sequence[float], sign: str) -> str:
    """An interval in brackets; one document has none."""
    low, high = interval
    if not np.isfinite([low, high]).all():
        return "[no interval]"
    return f"[{low:{sign}.4f}, {high:{sign}.4f}]"


def _copied(measured: Measured, losses: leakage.Losses, longest_X) -> dict:
    """The conditions on text that has more or less to copy, as JSON."""
    cfg, seed = measured.cfg, measured.cfg.evaluation.seed
    found: dict = {
        "by_longest_run": leakage.by_longest_run(losses, longest_X, seed),
        "by_overlap": leakage.by_overlap(losses, longest_X, cfg.model.chunk_len, seed),
    }
    if cfg.evaluation.decontaminate:
        found["decontaminated"] = leakage.decontaminated(
            losses,
            batches(cfg, measured.sequences),
            measured.database.snapshot,
            seed,
        )
    return found


def _described(database: Snapshot) -> dict:
    """What was read: the database's fingerprint and how much can be found in it."""
    return {
        "fingerprint": database.fingerprint,
        "version": database.version,
        "chunks": len(database.searchable),
    }


def _by_document(measured: Measured, losses: leakage.Losses) -> dict:
    """Sums over each document that was measured, as JSON: lists in one order."""
    off = losses["off"]
    rows_D, documents_X = np.unique(off.documents_X, return_inverse=True)
    _, bytes_D = off.by_document()
    is_kept_D = (rows_D >= 0) & (bytes_D > 0)

    def summed(values_X: np.ndarray) -> list[float]:
        return np.bincount(documents_X, weights=values_X)[is_kept_D].tolist()

    return {
        "documents": _names(measured, rows_D[is_kept_D]),
        "bytes": summed(off.bytes_X),
        "tokens": summed(off.tokens_X),
        "bits": {
            name: summed(found.loss_nats_X / np.log(2))
            for name, found in losses.items()
        },
    }


def _names(measured: Measured, rows_D: np.ndarray) -> list[str]:
    if measured.text is not None:
        return [measured.text.ids[row] for row in rows_D]
    split = measured.cfg.evaluation.split
    records = measured.database.snapshot.documents(split)
    return records.column("id").take(rows_D).to_pylist()


def _per_word(text: Text, losses: leakage.Losses) -> dict:
    """Perplexity of a word, as JSON, by words of what is scored and of the page.

    They differ where WikiText is joined again: then the usual score counts words and bytes
    of the page. A document's first token is not scored, and its end is.
    """
    words, page_words = int(text.words_D.sum()), int(text.page_words_D.sum())
    page_bytes = int(text.page_bytes_D.sum())
    return {
        "words_scored": words,
        "words_of_pages": page_words,
        "bytes_of_pages": page_bytes,
        "conditions": {
            name: {
                "perplexity_by_words_scored": found.perplexity(words),
                "perplexity_by_words_of_pages": found.perplexity(page_words),
                "bits_per_byte_of_pages": float(found.loss_nats_X.sum())
                / (page_bytes * np.log(2)),
            }
            for name, found in losses.items()
        },
    }


def _curves(measured: Measured, off: evaluation.ChunkLosses) -> dict:
    """Retrieval on with fewer or more neighbours, and with parts of the database, as JSON."""
    cfg, seed = measured.cfg, measured.cfg.evaluation.seed
    found: dict = {}
    if most := max(cfg.evaluation.neighbours, default=0):
        wide = measured
        if most > cfg.data.num_neighbours:
            wide = dataclasses.replace(
                measured, sequences=searched(measured, num_neighbours=most)
            )
        found["neighbours"] = [
            {
                "neighbours": count,
                **leakage.compared(
                    _losses(wide, "on", most=count) if count else off, off, seed
                ),
            }
            for count in cfg.evaluation.neighbours
        ]
    if cfg.evaluation.database_shares:
        found["database_shares"] = []
    for share in cfg.evaluation.database_shares:
        part = searched(measured, share=share)
        of_part = dataclasses.replace(measured, sequences=part)
        found["database_shares"].append(
            {
                "share": share,
                "chunks": part.num_read,
                **leakage.compared(_losses(of_part, "on"), off, seed),
            }
        )
    return found


def searched(
    measured: Measured, *, num_neighbours: int = 0, share: float = 1.0
) -> HeldOut:
    """The measured text with other neighbours: so many, or of a part of the database."""
    cfg = measured.cfg
    if measured.text is None:
        raise ValueError("there is no text to search for")
    count = num_neighbours or cfg.data.num_neighbours
    return HeldOut(
        measured.text,
        measured.database.snapshot,
        dataclasses.replace(cfg.data, num_neighbours=count),
        stride=cfg.evaluation.stride_chunks,
        share=share,
        seed=cfg.evaluation.seed,
    )


def _losses_or_kept(measured: Measured, name: str) -> evaluation.ChunkLosses:
    """What is lost on each chunk in one condition, as it was measured before the stop."""
    if measured.kept is None:
        return _losses(measured, name)
    found = measured.kept.get(name)
    if found is None:
        found = _losses(measured, name)
        measured.kept.put(name, found)
    return found


def _losses(
    measured: Measured, name: str, *, most: int | None = None
) -> evaluation.ChunkLosses:
    """What is lost on each chunk in one condition, with its progress shown.

    Args:
        most: neighbours that are read; all, if not given.
    """
    cfg = measured.cfg
    params = measured.params
    if name == "untrained" and measured.untrained is not None:
        params = measured.untrained
    found = _read(measured, name)
    if most is not None:
        found = controls.with_fewer_neighbours(found, most)
    with _shown(measured, f"retrieval {name}") as progress:
        return evaluation.chunk_losses(
            cfg.model,
            params,
            measured.mesh,
            found,
            retrieval=name != "off",
            encodings=measured.encodings,
            advance=progress.advance,
        )


def _shown(measured: Measured, title: str) -> Progress:
    cfg = measured.cfg
    count = num_sequences(cfg, measured.sequences)
    of_what = cfg.evaluation.held_out or f"{cfg.evaluation.split} split"
    return Progress(f"{title}, {of_what}", count, "sequences")


def _texts(measured: Measured) -> DatabaseTexts:
    """The text that kNN-LM looks through.

    Raises:
        ValueError: if there is none, or this machine can't hold what is nearest to the text
            that is measured.
    """
    cfg, evaluated = measured.cfg, measured.cfg.evaluation
    sequence_len = cfg.data.sequence_chunks * cfg.model.chunk_len
    num_positions = num_sequences(cfg, measured.sequences) * sequence_len
    needed_bytes = num_positions * knn_lm.POSITION_BYTES
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed_bytes > memory_bytes / 2:
        raise ValueError(
            f"kNN-LM would hold {needed_bytes / 1e9:.1f} GB for {num_positions:,} tokens of "
            f"text, more than half of this machine's {memory_bytes / 1e9:.1f} GB: set "
            "evaluation.max_sequences, or leave knn out"
        )
    texts = DatabaseTexts(
        measured.database.snapshot,
        most_chunks=evaluated.knn_chunks,
        seed=evaluated.seed,
    )
    if not len(texts):
        raise ValueError(
            f"evaluation.knn_chunks={evaluated.knn_chunks}: each document of the database "
            "has more chunks, and none is cut; raise it, or give 0 for all"
        )
    return texts


def _of_knn_lm(
    measured: Measured, texts: DatabaseTexts
) -> tuple[evaluation.ChunkLosses, dict]:
    """What kNN-LM loses with the tokens of the database, and how it was mixed."""
    cfg, snapshot = measured.cfg, measured.database.snapshot
    with Progress("kNN-LM, database", len(texts), "chunks") as progress:
        losses = knn_lm.chunk_losses(
            cfg.model,
            measured.params,
            measured.mesh,
            batches(cfg, measured.sequences),
            texts.blocks(),
            advance=progress.advance,
        )
    found, chosen = knn_lm.chosen_by_halves(losses)
    return found, {
        "of_halves": [mixture._asdict() for mixture in chosen],
        "chunks": len(texts),
        "of_chunks": len(snapshot.searchable),
    }


def _read(measured: Measured, name: str) -> Iterator[Batch]:
    """Batches with the neighbours that a condition reads."""
    cfg, snapshot = measured.cfg, measured.database.snapshot
    seed, chunk_len = cfg.evaluation.seed, cfg.model.chunk_len
    found = batches(cfg, measured.sequences)
    match name:
        case "random":
            found = controls.with_random_neighbours(found, snapshot, seed)
        case "shuffled":
            again = batches(cfg, measured.sequences)
            found = controls.with_shuffled_neighbours(found, again, snapshot, seed)
        case "match":
            found = controls.with_matches_alone(found, chunk_len)
        case "continuation":
            found = controls.with_continuations_alone(found, chunk_len)
        case "oracle":
            found = controls.with_true_text(found)
        case "stale":
            found = controls.with_stale_neighbours(found)
    if measured.limits == reading.ALL:
        return found
    if name in _DRAWN:
        found = _with_distances(found, measured.database)
    return reading.within(found, measured.limits)


def _with_distances(found: Iterator[Batch], database: Database) -> Iterator[Batch]:
    """Batches that say how far drawn neighbours are from the chunks that read them."""
    for batch in found:
        ids_BCN = batch["neighbour_ids_BCN"]
        tokens_BCM = batch["inputs_BL"].reshape(*ids_BCN.shape[:2], -1)
        texts = [
            database.tokenizer.decode(tokens)
            for tokens in tokens_BCM.reshape(-1, tokens_BCM.shape[-1])
        ]
        asked = database.embedder.embed(texts).astype(np.float32)
        drawn_ids_T = np.maximum(ids_BCN, 0).reshape(-1)
        drawn = database.snapshot.vectors(drawn_ids_T).astype(np.float32)
        apart = asked.reshape(*ids_BCN.shape[:2], 1, -1) - drawn.reshape(
            *ids_BCN.shape, -1
        )
        yield {**batch, "neighbour_distances_BCN": np.square(apart).sum(axis=-1)}


def choose_limits(measured: Measured) -> dict:
    """Chooses what is worth reading, on the measured split; see `reading.choose`."""
    off, on = _losses(measured, "off"), _losses(measured, "on")
    found = batches(measured.cfg, measured.sequences)
    return reading.choose(off, on, *reading.read_by_chunks(found))


def _gates(measured: Measured) -> dict:
    """What heads of CCA do, by layer, as JSON.

    Their gates after training and, if they are known, before; and the share of attention
    that they give to passages in the first sequences that are measured.
    """

    def listed(params: parameters.Parameters | None, layer: int) -> list[float] | None:
        name = f"decoder/{layer}/cross/gate_H"
        if params is None:
            return None
        return np.asarray(sharding.on_host(params[name]), np.float64).tolist()

    attention_TH = _passage_attention(measured)
    return {
        str(layer): {
            "before": listed(measured.untrained, layer),
            "after": listed(measured.params, layer),
            "attention": None if attention_TH is None else attention_TH[place].tolist(),
        }
        for place, layer in enumerate(sorted(measured.cfg.model.cca_layers))
    }


def _passage_attention(measured: Measured) -> np.ndarray | None:
    """Layers' and heads' attention to passages; None where the first batch has none."""
    batch = next(_read(measured, "on"))
    if not batch["neighbour_lengths_BCN"].any():
        return None
    if measured.encodings is not None:
        batch = measured.encodings.neighbours_added_to(measured.params, batch)
    with jax.set_mesh(measured.mesh):
        return reading_heads.passage_attention(
            measured.cfg.model,
            measured.params,
            sharding.to_devices(batch, measured.mesh),
        ).astype(np.float64)


def _beside_prompts(measured: Measured, losses: leakage.Losses) -> dict:
    """The same passages in the prompt of the same decoder, beside CCA on the same text."""
    cfg, seed = measured.cfg, measured.cfg.evaluation.seed
    size, chunks = cfg.evaluation.batch_size, cfg.data.sequence_chunks
    num_batches = -(-cfg.evaluation.prompt_sequences // size)
    some = list(itertools.islice(_read(measured, "on"), num_batches))
    title = f"passages in the prompt, {cfg.evaluation.split} split"
    prompted = list(evaluation.with_neighbours_in_prompt(cfg.model, some))
    with Progress(title, size * len(prompted), "sequences") as progress:
        of_prompts = evaluation.chunk_losses(
            cfg.model,
            measured.params,
            measured.mesh,
            prompted,
            retrieval=False,
            advance=progress.advance,
        )
    # The first chunk of a sequence has no passages, in the prompt as in CCA.
    place_X = np.arange(size * len(some) * chunks)
    same_X = np.zeros(len(losses["off"].tokens_X), bool)
    same_X[place_X[place_X % chunks > 0]] = True
    off = losses["off"].where(same_X)
    found = {name: of_all.where(same_X) for name, of_all in losses.items()}
    if measured.limits != reading.ALL:
        found["random unlimited"] = _unlimited(measured, len(some)).where(
            place_X % chunks > 0
        )
    scored = of_prompts.tokens_X > 0
    return {
        "sequences": size * len(some),
        "flops_of_chunk": {
            "prompt": flops.prompt_flops(cfg.model, cfg.data.num_neighbours),
            "kept": flops.reading_flops(cfg.model, cfg.data.num_neighbours, kept=True),
            "anew": flops.reading_flops(cfg.model, cfg.data.num_neighbours, kept=False),
        },
        "conditions": {
            name: leakage.compared(
                each.where(each.tokens_X > 0), off.where(off.tokens_X > 0), seed
            )
            for name, each in (*found.items(), ("prompt", of_prompts.where(scored)))
        },
    }


def _unlimited(measured: Measured, num_batches: int) -> evaluation.ChunkLosses:
    """What is lost with random passages that are read however far they are."""
    cfg = measured.cfg
    some = controls.with_random_neighbours(
        batches(cfg, measured.sequences),
        measured.database.snapshot,
        cfg.evaluation.seed,
    )
    count = num_batches * cfg.evaluation.batch_size
    title = f"random passages without limits, {cfg.evaluation.split} split"
    with Progress(title, count, "sequences") as progress:
        return evaluation.chunk_losses(
            cfg.model,
            measured.params,
            measured.mesh,
            itertools.islice(some, num_batches),
            retrieval=True,
            encodings=measured.encodings,
            advance=progress.advance,
        )


def num_sequences(cfg: Experiment, sequences: Sequences | HeldOut) -> int:
    """The number of sequences of the text that are measured."""
    return min(len(sequences), cfg.evaluation.max_sequences or len(sequences))


def batches(cfg: Experiment, sequences: Sequences | HeldOut) -> Iterator[Batch]:
    """Batches of the held-out text, with the neighbours that were found."""
    size, every = cfg.evaluation.batch_size, 1
    if cfg.evaluation.max_sequences:
        every = max(len(sequences) // cfg.evaluation.max_sequences, 1)
    found = sequences.in_order(size, every=every)
    return itertools.islice(found, -(-num_sequences(cfg, sequences) // size))
