"""Whether attention tells which passage an answer came from.

Where it is known which passages state an answer, two scores of passages are compared with
that and with each other: the share of cross-attention, which costs nothing, and the effect,
by which what was said becomes less likely once the passage is absent.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from data_pipeline.text.tokenizer import Tokenizer
from experiments.config import Experiment
from experiments.jobs.reading import Found
from retro_jax import evaluation
from retro_jax.generation import generate
from retro_jax.model import parameters
from retro_jax.training.encodings import Encodings

_SAID_TOKENS = 12  # that are attributed


@dataclasses.dataclass(frozen=True, slots=True)
class Read:
    """A question, in at most a chunk, with its passages.

    Attributes:
        document: whose text states the answer; a number.
        states_N: which passages state it.
    """

    prompt: list[int]
    answer: str
    document: int
    passages: list[list[int]]
    states_N: Bool[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """What two scores say of a question's passages."""

    read: Read
    text: str  # what was said
    attention_N: Float[np.ndarray, " N"]
    effects_N: Float[np.ndarray, " N"]

    @property
    def is_right(self) -> bool:
        """Whether what was said begins with the answer, and the number ends there."""
        whole = rf"\s*{re.escape(self.read.answer)}(?!\d|[.,]\d)"
        return re.match(whole, self.text) is not None


class _Given:
    """A retriever that finds for each prompt what stands beside it."""

    def __init__(self, rows: Sequence[Read], passage_len: int):
        self._of_prompt = {tuple(row.prompt): row.passages for row in rows}
        self._passage_len = passage_len

    def retrieve(self, tokens_QM: np.ndarray, num_neighbours: int) -> Found:
        """The passages of these prompts, in their order; none of another text."""
        shape = (len(tokens_QM), num_neighbours)
        tokens_QNR = np.zeros((*shape, self._passage_len), np.int32)
        lengths_QN = np.zeros(shape, np.int32)
        for row, tokens_M in enumerate(tokens_QM.tolist()):
            passages = self._of_prompt.get(tuple(tokens_M), [])
            for place, passage in enumerate(passages[:num_neighbours]):
                tokens_QNR[row, place, : len(passage)] = passage
                lengths_QN[row, place] = len(passage)
        ids_QN = np.where(lengths_QN > 0, np.arange(num_neighbours), -1)
        distances_QN = np.where(lengths_QN > 0, 0.0, np.inf).astype(np.float32)
        return Found(tokens_QNR, lengths_QN, ids_QN.astype(np.int64), distances_QN)


def scored(
    cfg: Experiment,
    params: parameters.Parameters,
    tokenizer: Tokenizer,
    rows: Sequence[Read],
    encodings: Encodings | None = None,
    advance: Callable[[int], None] = lambda questions: None,
) -> list[Scored]:
    """Answers questions and scores their passages; those with fewer than two are left out.

    Args:
        advance: called with the number of questions done.
    """
    advance(sum(len(row.passages) < 2 for row in rows))
    rows = [row for row in rows if len(row.passages) > 1]
    found = []
    for start in range(0, len(rows), cfg.evaluation.batch_size):
        some = rows[start : start + cfg.evaluation.batch_size]
        said = generate(
            cfg.model,
            params,
            [np.array(row.prompt, np.int32) for row in some],
            _Given(some, cfg.model.neighbour_len),
            num_tokens=min(_SAID_TOKENS, cfg.model.chunk_len),
            window_chunks=cfg.data.sequence_chunks,
            num_neighbours=max(len(row.passages) for row in some),
            eod_id=tokenizer.eod_id,
            vocab_size=tokenizer.vocab_size,
            encodings=encodings,
            effects=True,
        )
        advance(len(some))
        for row, made in zip(some, said, strict=True):
            source = made.sources[0] if made.sources else None
            if source is None or source.attention_N is None or source.effects_N is None:
                continue
            count = len(row.passages)
            text = tokenizer.decode(made.tokens)
            found.append(
                Scored(row, text, source.attention_N[:count], source.effects_N[:count])
            )
    return found


def summary(rows: Sequence[Scored], seed: int) -> Mapping:
    """How often the scores name a passage that states the answer, and agree, as JSON.

    Of true passages only answers that are right are counted, and questions of which some
    passages state the answer and some do not.
    """
    known = [row for row in rows if row.is_right and 0 < row.read.states_N.mean() < 1]

    def share(of: Sequence[Scored], is_so: Callable[[Scored], bool]) -> dict | None:
        return counted(
            [is_so(row) for row in of], [row.read.document for row in of], seed
        )

    several = [row for row in rows if len(row.attention_N) > 2]
    return {
        "questions": len(rows),
        "right": sum(row.is_right for row in rows),
        "passages": float(np.mean([len(row.attention_N) for row in rows] or [0])),
        "most_attention_is_true": share(
            known, lambda row: bool(row.read.states_N[row.attention_N.argmax()])
        ),
        "most_effect_is_true": share(
            known, lambda row: bool(row.read.states_N[row.effects_N.argmax()])
        ),
        "by_chance": float(np.mean([row.read.states_N.mean() for row in known] or [0])),
        "top_agreement": share(
            rows, lambda row: bool(row.attention_N.argmax() == row.effects_N.argmax())
        ),
        "rank_correlation": counted(
            [rank_correlation(row.attention_N, row.effects_N) for row in several],
            [row.read.document for row in several],
            seed,
        ),
    }


def counted(
    values: Sequence[float], documents: Sequence[int], seed: int
) -> dict | None:
    """A mean over questions with its interval over documents; None of no question."""
    if not len(values):
        return None
    ones, of_each = np.ones(len(values)), np.array(values, np.float64)
    # Losses of a byte each: their bits per byte are the mean.
    losses = evaluation.ChunkLosses(
        of_each * np.log(2), ones, ones, np.array(documents, np.int64)
    )
    return {
        "mean": float(of_each.mean()),
        "interval": evaluation.interval(losses, seed=seed),
        "questions": len(values),
    }


def rank_correlation(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Spearman's; equal values have the order in which they stand."""
    first, second = [
        np.argsort(np.argsort(each, kind="stable")) for each in (first_N, second_N)
    ]
    return float(np.corrcoef(first.astype(float), second.astype(float))[0, 1])
