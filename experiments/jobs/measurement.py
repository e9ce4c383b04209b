"""A trained model's loss on held-out text: retrieval on, off and with random passages.

Letters here: X chunks.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import numpy as np

from data_pipeline.database import Database
from data_pipeline.sequences.batches import Sequences, with_random_neighbours
from data_pipeline.sequences.overlap import longest_common_run
from data_pipeline.storage.progress import Progress
from experiments.config import Experiment
from experiments.jobs import reading
from retro_jax import evaluation
from retro_jax.devices import sharding
from retro_jax.model import flops, parameters, reading_heads
from retro_jax.training.batch import Batch
from retro_jax.training.encodings import Encodings

# Chunks that share at most this part of their tokens, in one run, with what was retrieved
# for them count as not overlapping (paper, section 2.6 and figure 6).
_LITTLE_OVERLAP_SHARE = 0.125
_RUN_BINS = (0, 8, 16)  # tokens of the longest run from which a bin begins


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What is measured, and on what."""

    cfg: Experiment
    params: parameters.Parameters
    mesh: jax.sharding.Mesh
    sequences: Sequences
    database: Database
    untrained: parameters.Parameters | None = None  # a retrofit's, of step 0
    encodings: Encodings | None = None
    limits: reading.Limits = reading.ALL


def conditions(measured: Measured) -> dict:
    """Bits per byte in each condition, with intervals, as JSON.

    'off' skips chunked cross-attention, 'on' reads the neighbours that were found,
    'untrained' reads them as a retrofit did before its training, 'random' reads passages
    drawn from the database in their place, 'prompt' has the found ones before the text and
    is measured on fewer sequences. A model without cross-attention has 'off' alone.
    """
    cfg, sequences = measured.cfg, measured.sequences
    losses = {"off": _losses(measured, "off")}
    if cfg.has_cca:
        losses["on"] = _losses(measured, "on")
        if measured.untrained is not None:
            losses["untrained"] = _losses(measured, "untrained")
        losses["random"] = _losses(measured, "random")
    longest_X = longest_runs(cfg, batches(cfg, sequences))
    little_X = has_little_overlap(cfg, longest_X)
    off, seed = losses["off"], cfg.evaluation.seed
    scored_X = off.tokens_X > 0
    results = {
        "split": cfg.evaluation.split,
        "documents": len(np.unique(off.documents_X[scored_X])),
        "bytes": float(off.bytes_X.sum()),
        "tokens": float(off.tokens_X.sum()),
        "little_overlap_share": float(little_X[scored_X].mean()),
        "conditions": {
            name: {
                **_compared(found, off, seed),
                "little_overlap_bits_per_byte": found.bits_per_byte(little_X),
            }
            for name, found in losses.items()
        },
    }
    if cfg.model.encoder == "decoder":
        results["gates"] = _gates(measured)
    if cfg.has_cca:
        results["by_longest_run"] = _by_longest_run(losses, longest_X, seed)
        if cfg.evaluation.prompt_sequences:
            results["prompt"] = _beside_prompts(measured, losses)
    return results


def _losses(measured: Measured, name: str) -> evaluation.ChunkLosses:
    """What is lost on each chunk in one condition, with its progress shown."""
    cfg = measured.cfg
    params = measured.params
    if name == "untrained" and measured.untrained is not None:
        params = measured.untrained
    drawn_from = measured.database if name == "random" else None
    split, count = cfg.evaluation.split, num_sequences(cfg, measured.sequences)
    with Progress(f"retrieval {name}, {split} split", count, "sequences") as progress:
        return evaluation.chunk_losses(
            cfg.model,
            params,
            measured.mesh,
            _read(measured, drawn_from),
            retrieval=name != "off",
            encodings=measured.encodings,
            advance=progress.advance,
        )


def _read(measured: Measured, drawn_from: Database | None) -> Iterator[Batch]:
    """Batches with the neighbours that are read."""
    found = batches(measured.cfg, measured.sequences, drawn_from)
    if measured.limits == reading.ALL:
        return found
    if drawn_from is not None:
        found = _with_distances(found, drawn_from)
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
    batch = next(_read(measured, None))
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


def _compared(
    found: evaluation.ChunkLosses, off: evaluation.ChunkLosses, seed: int
) -> dict:
    """Bits per byte of a condition, alone and beside retrieval off."""
    return {
        "bits_per_byte": found.bits_per_byte(),
        "interval": evaluation.interval(found, seed=seed),
        "minus_off": found.bits_per_byte() - off.bits_per_byte(),
        "minus_off_interval": evaluation.interval(found, off, seed=seed),
    }


def _by_longest_run(losses: dict, longest_X: np.ndarray, seed: int) -> list[dict]:
    """The conditions on chunks that have more or less to copy, as JSON."""
    off, found = losses["off"], []
    for low, end in zip(_RUN_BINS, (*_RUN_BINS[1:], None), strict=True):
        in_bin = (longest_X >= low) & (longest_X < (end or np.inf)) & (off.tokens_X > 0)
        found.append(
            {
                "from_tokens": low,
                "below_tokens": end,
                "chunks": int(in_bin.sum()),
                "conditions": {
                    name: _compared(of_all.where(in_bin), off.where(in_bin), seed)
                    for name, of_all in losses.items()
                }
                if in_bin.any()
                else {},
            }
        )
    return found


def _beside_prompts(measured: Measured, losses: dict) -> dict:
    """The same passages in the prompt of the same decoder, beside CCA on the same text."""
    cfg, seed = measured.cfg, measured.cfg.evaluation.seed
    size, chunks = cfg.evaluation.batch_size, cfg.data.sequence_chunks
    num_batches = -(-cfg.evaluation.prompt_sequences // size)
    some = list(itertools.islice(_read(measured, None), num_batches))
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
            name: _compared(
                each.where(each.tokens_X > 0), off.where(off.tokens_X > 0), seed
            )
            for name, each in (*found.items(), ("prompt", of_prompts.where(scored)))
        },
    }


def _unlimited(measured: Measured, num_batches: int) -> evaluation.ChunkLosses:
    """What is lost with random passages that are read however far they are."""
    cfg = measured.cfg
    some = batches(cfg, measured.sequences, measured.database)
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


def num_sequences(cfg: Experiment, sequences: Sequences) -> int:
    """The number of sequences of the split that are measured."""
    return min(len(sequences), cfg.evaluation.max_sequences or len(sequences))


def batches(
    cfg: Experiment, sequences: Sequences, drawn_from: Database | None = None
) -> Iterator[Batch]:
    """Batches of the held-out split; neighbours drawn at random, if from a database."""
    size, every = cfg.evaluation.batch_size, 1
    if cfg.evaluation.max_sequences:
        every = max(len(sequences) // cfg.evaluation.max_sequences, 1)
    found = sequences.in_order(size, every=every)
    if drawn_from is not None:
        found = with_random_neighbours(found, drawn_from.snapshot, cfg.evaluation.seed)
    return itertools.islice(found, -(-num_sequences(cfg, sequences) // size))


def has_little_overlap(cfg: Experiment, longest_X: np.ndarray) -> np.ndarray:
    """Tells for each chunk whether there was little to copy for it (paper, 2.6)."""
    return longest_X <= _LITTLE_OVERLAP_SHARE * cfg.model.chunk_len


def longest_runs(cfg: Experiment, held_out: Iterator[Batch]) -> np.ndarray:
    """Gives each chunk's longest run of tokens that stands in a passage.

    The passages are the chunk's own neighbours and those that it reads, which are the
    neighbours of the chunk before it.
    """
    chunk_len, parts = cfg.model.chunk_len, []
    for batch in held_out:
        inputs_BCM = batch["inputs_BL"].reshape(len(batch["inputs_BL"]), -1, chunk_len)
        lengths_BC = (batch["segments_BL"] > 0).reshape(inputs_BCM.shape).sum(axis=-1)
        own, own_lengths = batch["neighbours_BCNR"], batch["neighbour_lengths_BCN"]
        read, read_lengths = np.roll(own, 1, axis=1), np.roll(own_lengths, 1, axis=1)
        # The first chunk of a sequence reads none; `roll` gave it the last one's.
        read_lengths[:, 0] = 0
        passages = np.concatenate([own, read], axis=2)
        lengths = np.concatenate([own_lengths, read_lengths], axis=2)
        runs = longest_common_run(
            inputs_BCM.reshape(-1, chunk_len),
            passages.reshape(-1, *passages.shape[2:]),
            lengths_BC.reshape(-1),
            lengths.reshape(-1, lengths.shape[2]),
        )
        parts.append(runs)
    return np.concatenate(parts)
