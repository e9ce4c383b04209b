"""Text, token by token, with neighbours that are retrieved for every completed chunk.

Where the neighbours come from is the caller's: anything that satisfies `Retriever`.
"""

import dataclasses
import functools
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from retro_jax.config import ModelConfig
from retro_jax.devices import sharding
from retro_jax.model import parameters
from retro_jax.training.batch import Batch
from retro_jax.training.encodings import Encodings
from retro_jax.training.step import logits


@runtime_checkable
class Neighbours(Protocol):
    """The N neighbours of each of Q chunks.

    Attributes:
        tokens_QNR: int32 token ids.
        lengths_QN: how many of the R are text; 0 = absent.
        chunk_ids_QN: int64, -1 = absent; what a source is looked up by.
        distances_QN: squared distances to the chunk that asked.
    """

    @property
    def tokens_QNR(self) -> Int[np.ndarray, "Q N R"]: ...
    @property
    def lengths_QN(self) -> Int[np.ndarray, "Q N"]: ...
    @property
    def chunk_ids_QN(self) -> Int[np.ndarray, "Q N"]: ...
    @property
    def distances_QN(self) -> Float[np.ndarray, "Q N"]: ...


@runtime_checkable
class Retriever(Protocol):
    """Finds the neighbours of chunks."""

    def retrieve(
        self, tokens_QM: Int[np.ndarray, "Q M"], num_neighbours: int
    ) -> Neighbours: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Which neighbours stood open while some tokens were generated.

    Attributes:
        start, stop: the tokens of the whole text (prompt included) that could read them.
        chunk_ids_N: chunks of the database.
        distances_N: squared distances to the chunk that asked.
    """

    start: int
    stop: int
    chunk_ids_N: np.ndarray
    distances_N: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class Generated:
    """Tokens after a prompt, and what was retrieved for them."""

    tokens: np.ndarray
    sources: list[Source]


def generate(
    cfg: ModelConfig,
    params: parameters.Parameters,
    prompt: Int[np.ndarray, " L"],
    retriever: Retriever | None,
    *,
    num_tokens: int,
    window_chunks: int,
    num_neighbours: int,
    eod_id: int,
    temperature: float = 0.0,
    top_p: float = 0.95,
    seed: int = 0,
    vocab_size: int | None = None,
    encodings: Encodings | None = None,
) -> Generated:
    """Continues a prompt.

    The prompt is padded on the left so that it ends with a chunk: its last chunk's
    neighbours are then there for the first new token, even if the prompt is shorter than
    a chunk. (Positions are relative, padding is masked: nothing else changes.)

    Args:
        prompt: at least one token.
        retriever: None generates without retrieval.
        num_tokens: new tokens at most; less if the document ends.
        window_chunks: C, chunks that the model sees at a time; as in training.
        temperature: 0 takes the likeliest token.
        top_p: tokens are drawn from the likeliest that together reach this probability.
        vocab_size: of the tokenizer, where the model's is rounded up; None = the model's.
        encodings: what neighbours are read as, where a decoder reads them itself.
    Raises:
        ValueError: for an empty prompt.
    Source: Borgeaud et al. 2022, section 2 (retrieval while sampling); the left padding
        is that of Wang et al. 2023.
    """
    if len(prompt) == 0:
        raise ValueError("the prompt is empty: give at least one token to continue")
    # A fused kernel gains nothing on one sequence, which no mesh divides.
    cfg = dataclasses.replace(cfg, attention="einsum")
    chunk_len = cfg.chunk_len
    padding = -len(prompt) % chunk_len
    text = [0] * padding + [int(token) for token in prompt]
    rng = np.random.default_rng(seed)
    window = _Window(cfg, padding, window_chunks, num_neighbours, retriever)
    for _ in range(num_tokens):
        batch, position = window.inputs(text)
        if encodings is not None:
            batch = encodings.neighbours_added_to(params, batch)
        logits_V = sharding.on_host(_next_logits(cfg, params, batch, position))
        token = sample_token(logits_V[:vocab_size], temperature, top_p, rng)
        if token == eod_id:
            break
        text.append(token)
    return Generated(
        np.array(text[padding + len(prompt) :], np.int32), window.sources(len(text))
    )


class _Window:
    """The last chunks of a text with their neighbours, as the model's inputs."""

    def __init__(
        self,
        cfg: ModelConfig,
        padding: int,
        window_chunks: int,
        num_neighbours: int,
        retriever: Retriever | None,
    ):
        self._cfg, self._padding, self._num_chunks = cfg, padding, window_chunks
        self._num_neighbours, self._retriever = num_neighbours, retriever
        self._found: list[Neighbours] = []  # of each complete chunk of the text
        self._length = window_chunks * cfg.chunk_len

    def inputs(self, text: list[int]) -> tuple[Batch, int]:
        """The batch of one sequence that ends with a text, and the place of its last token."""
        chunk_len = self._cfg.chunk_len
        self._retrieve(text)
        # The window moves by chunks; the last token of the text is always in it.
        first_chunk = max(-(-len(text) // chunk_len) - self._num_chunks, 0)
        seen = text[first_chunk * chunk_len :]
        inputs_L = np.zeros(self._length, np.int32)
        inputs_L[: len(seen)] = seen
        segments_L = np.zeros(self._length, np.int32)
        segments_L[: len(seen)] = 1
        segments_L[: max(self._padding - first_chunk * chunk_len, 0)] = 0
        batch = {"inputs_BL": inputs_L[None], "segments_BL": segments_L[None]}
        if self._retriever is not None:
            batch |= self._neighbours(first_chunk)
        return batch, len(seen) - 1

    def _neighbours(self, first_chunk: int) -> Batch:
        """Tokens and lengths of the neighbours of the window's chunks."""
        shape = (self._num_chunks, self._num_neighbours)
        neighbours_CNR = np.zeros((*shape, self._cfg.neighbour_len), np.int32)
        lengths_CN = np.zeros(shape, np.int32)
        for place, found in enumerate(self._found[first_chunk:]):
            neighbours_CNR[place] = found.tokens_QNR[0]
            lengths_CN[place] = found.lengths_QN[0]
        return {
            "neighbours_BCNR": neighbours_CNR[None],
            "neighbour_lengths_BCN": lengths_CN[None],
        }

    def _retrieve(self, text: list[int]) -> None:
        """Asks for the neighbours of the chunks that were completed since."""
        if self._retriever is None:
            return
        chunk_len = self._cfg.chunk_len
        while (len(self._found) + 1) * chunk_len <= len(text):
            start = len(self._found) * chunk_len
            real_start = max(start, self._padding)
            chunk = np.array([text[real_start : start + chunk_len]], np.int32)
            self._found.append(self._retriever.retrieve(chunk, self._num_neighbours))

    def sources(self, text_len: int) -> list[Source]:
        """The neighbours of each chunk and the tokens that could read them."""
        chunk_len = self._cfg.chunk_len
        return [
            Source(
                start=(number + 1) * chunk_len - self._padding,
                stop=min((number + 2) * chunk_len, text_len) - self._padding,
                chunk_ids_N=found.chunk_ids_QN[0],
                distances_N=found.distances_QN[0],
            )
            for number, found in enumerate(self._found)
            if (number + 1) * chunk_len < text_len
        ]


@functools.partial(jax.jit, static_argnums=0)
def _next_logits(cfg: ModelConfig, params, batch, position):
    return jnp.take(logits(cfg, params, batch)[0], position, axis=0)


def sample_token(
    logits_V: Float[np.ndarray, " V"],
    temperature: float,
    top_p: float,
    rng: np.random.Generator,
) -> int:
    """The likeliest token at temperature 0, else one drawn from the nucleus."""
    if temperature <= 0:
        return int(np.argmax(logits_V))
    scaled = logits_V.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    nucleus = order[: max(1, np.count_nonzero(before < top_p))]
    weights = probabilities[nucleus] / probabilities[nucleus].sum()
    return int(rng.choice(nucleus, p=weights))
