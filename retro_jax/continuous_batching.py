"""Texts that share the steps of a decoder, and come and go between chunks.

One step draws a few tokens of every text, a single one where a text has none yet. Its shape
is one of few, whatever is under way: rows that nobody needs are computed in vain. What a
text says does not depend on the others, nor on how many tokens a step has.

Letters here: A likeliest tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from retro_jax.config import ModelConfig
from retro_jax.devices import sharding
from retro_jax.generation import Decoder, Library, Made, Retriever, Source, Text
from retro_jax.model import parameters
from retro_jax.numerics.sampling import NUM_LIKELIEST, Sampling
from retro_jax.training.encodings import Encodings

NEVER = -1  # the id of no token
_STEP_TOKENS = 8  # fewer make each dearer, more make whoever reads along wait


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A text that is to be continued.

    Attributes:
        prompt: token ids, at least one and no more than the window holds.
        num_tokens: new tokens at most, at least one.
        eod_id: the token that ends it; NEVER if none does.
        num_neighbours: of each chunk; 0 = retrieval off, None = all.
        effects: whether each neighbour's effect is measured.
        likeliest: whether the likeliest tokens are told beside those drawn.
    """

    prompt: np.ndarray
    num_tokens: int
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    eod_id: int = NEVER
    num_neighbours: int | None = None
    effects: bool = False
    likeliest: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a step has added to a text.

    Attributes:
        likeliest_tokens_LA: None if they were not asked for; so are their log_probs.
        source: gives what could be read for the chunk so far, None where nothing was
            looked for. It measures effects, and must be called before the next step.
        ends_chunk: whether the chunk or the text ends here; what was read is then known.
        finish: '' while the text goes on, else 'end' or 'length'.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    likeliest_tokens_LA: np.ndarray | None = None
    likeliest_log_probs_LA: np.ndarray | None = None
    source: Callable[[], Source | None] | None = None
    ends_chunk: bool = False
    finish: str = ""


class Scores(NamedTuple):
    """How likely the tokens of a text are, by the model alone.

    Attributes:
        log_probs_L: of each token but the first, and 0 for that.
        likeliest_tokens_LA: in place of each token, and of the one after the last.
    """

    log_probs_L: Float[np.ndarray, " L"]
    likeliest_tokens_LA: Int[np.ndarray, "_ A"]
    likeliest_log_probs_LA: Float[np.ndarray, "_ A"]


class _Row(NamedTuple):
    name: Hashable
    text: Text
    wanted: Wanted


class ContinuousBatch:
    """The texts under way; it belongs to one thread.

    Attributes:
        window_tokens: the longest prompt.
        most_texts: how many can be under way at once.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        params: parameters.Parameters,
        retriever: Retriever | None,
        *,
        window_chunks: int,
        num_neighbours: int,
        vocab_size: int,
        encodings: Encodings | None = None,
        sizes: Sequence[int] = (1, 4, 8),
        step_tokens: int = _STEP_TOKENS,
        overlapped: bool = False,
    ):
        """Begins with no text.

        Args:
            sizes: rows that a step may have, the least first.
            step_tokens: how many tokens of a text a step draws, but for its first.
            overlapped: whether retrieval is, see `generation.Library`.
        """
        # A fused kernel gains nothing on few rows, which no mesh divides.
        self._cfg = dataclasses.replace(cfg, attention="einsum", remat="none")
        self._params, self._encodings = params, encodings
        self._vocab_size, self._window_chunks = vocab_size, window_chunks
        self.window_tokens = window_chunks * cfg.chunk_len
        self._sizes, self.most_texts = tuple(sizes), max(sizes)
        self._step_tokens = step_tokens
        self._library = Library(
            retriever, cfg.neighbour_len, num_neighbours, overlapped=overlapped
        )
        self._decoder = Decoder(
            self._cfg, params, encodings, window_chunks, self._library
        )
        self._idle = Text(cfg.chunk_len, np.zeros(1, np.int32), window_chunks, 0)
        self._idle.finish = "end"
        self._rows: list[_Row | None] = []

    @property
    def num_texts(self) -> int:
        """How many texts are under way."""
        return sum(row is not None for row in self._rows)

    @property
    def num_free(self) -> int:
        """How many texts may join now: none in the middle of a chunk."""
        if self.num_texts and not self._decoder.is_between_chunks:
            return 0
        return self.most_texts - self.num_texts

    def join(self, name: Hashable, wanted: Wanted) -> None:
        """Reads a prompt, if a row is free; its text goes on with the next step."""
        if not self.num_free:
            raise ValueError("no row is free for another text")
        text = Text(
            self._cfg.chunk_len,
            wanted.prompt,
            self._window_chunks,
            wanted.num_neighbours,
        )
        self._library.retrieve([text])
        row = _Row(name, text, wanted)
        if not self.num_texts:
            # Anew, whatever became of what was kept before.
            self._rows = [row, *[None] * (self._sizes[0] - 1)]
            texts = [text, *[self._idle] * (len(self._rows) - 1)]
            self._decoder.begin(texts, self._settings(), self._vocab_size)
            return
        self._fit(self.num_texts + 1)
        place = self._rows.index(None)
        self._rows[place] = row
        self._decoder.enter(place, text, self._settings())

    def leave(self, name: Hashable) -> None:
        """Ends a text, if it is still under way."""
        self._rows = [
            None if row is not None and row.name == name else row for row in self._rows
        ]

    def step(self) -> dict[Hashable, Said]:
        """Adds some tokens to every text; those that end with them leave."""
        under_way = [row for row in self._rows if row is not None]
        if not under_way:
            return {}
        if self._decoder.is_between_chunks:
            self._fit(len(under_way))
            self._library.retrieve([row.text for row in under_way])
        most = max(row.wanted.num_tokens - row.text.num_new for row in under_way)
        is_first = any(row.text.num_new == 0 for row in under_way)
        made = self._decoder.more(
            [self._idle if row is None else row.text for row in self._rows],
            min(most, 1 if is_first else self._step_tokens),
            [NEVER if row is None else row.wanted.eod_id for row in self._rows],
            likeliest=any(row.wanted.likeliest for row in under_way),
        )
        said = {}
        for place, row in enumerate(self._rows):
            if row is None:
                continue
            said[row.name] = self._said(place, row, made)
            if row.text.finish:
                self._rows[place] = None
        return said

    def scores(self, prompt: np.ndarray, num_neighbours: int | None) -> Scores:
        """Scores a text in one pass, in chunks from its beginning, as evaluation does."""
        chunk_len, length = self._cfg.chunk_len, len(prompt)
        text = Text(chunk_len, prompt, self._window_chunks, num_neighbours)
        text.padding, text.tokens = 0, [int(token) for token in prompt]
        self._library.retrieve([text])
        num_chunks = -(-length // chunk_len)
        num_chunks = min(1 << (num_chunks - 1).bit_length(), self._window_chunks)
        found = [text.found.get(chunk) for chunk in range(text.num_chunks)]
        batch = self._library.batch([found], num_chunks)
        if self._encodings is not None:
            batch = self._encodings.neighbours_added_to(self._params, batch)
        inputs_BL = np.zeros((1, num_chunks * chunk_len), np.int32)
        inputs_BL[0, :length] = prompt
        segments_BL = np.zeros_like(inputs_BL)
        segments_BL[0, :length] = 1
        batch |= {"inputs_BL": inputs_BL, "segments_BL": segments_BL}
        scored = _scores(self._cfg, self._vocab_size, self._params, batch)
        log_probs_L, tokens_LA, likeliest_LA = sharding.on_host(scored)
        return Scores(
            np.concatenate([np.zeros(1, np.float32), log_probs_L[: length - 1]]),
            # In place of the first nothing is known.
            np.concatenate([tokens_LA[:1], tokens_LA[:length]]),
            np.concatenate([likeliest_LA[:1], likeliest_LA[:length]]),
        )

    def _said(self, place: int, row: _Row, made: Made) -> Said:
        text, wanted = row.text, row.wanted
        more = text.say(made, place, wanted.eod_id, None, wanted.num_tokens)
        tokens, log_probs = text.said_last(more)
        tokens_PA = made.likeliest_tokens_BPA[place, :more]
        log_probs_PA = made.likeliest_log_probs_BPA[place, :more]
        return Said(
            tokens=tokens,
            log_probs=log_probs,
            likeliest_tokens_LA=tokens_PA if wanted.likeliest else None,
            likeliest_log_probs_LA=log_probs_PA if wanted.likeliest else None,
            source=functools.partial(self._source, place, row),
            ends_chunk=self._decoder.is_between_chunks or bool(text.finish),
            finish=text.finish,
        )

    def _source(self, place: int, row: _Row) -> Source | None:
        """What a text could read for the chunk so far, with effects if they are wanted."""
        text, wanted = row.text, row.wanted
        if wanted.num_neighbours == 0 or text.last_source() is None:
            return None
        if wanted.effects:
            text.add_effects(self._decoder.log_probs_without(text, place))
        return text.last_source()

    def _fit(self, num_texts: int) -> None:
        """Gives the step the least shape that has room for so many texts."""
        size = min(size for size in self._sizes if size >= num_texts)
        if size == len(self._rows):
            return
        taken = [place for place, row in enumerate(self._rows) if row is not None]
        places = [*taken, *[0] * (size - len(taken))]
        rows = [self._rows[place] for place in taken]
        self._rows = [*rows, *[None] * (size - len(rows))]
        self._decoder.take(places, self._settings())

    def _settings(self) -> list[Sampling]:
        return [
            Sampling() if row is None else row.wanted.sampling for row in self._rows
        ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(cfg: ModelConfig, vocab_size: int, params, batch):
    """Log-probabilities of the token after each position, and the likeliest there."""
    model = parameters.rebuild(cfg, params)
    inputs_BL = batch["inputs_BL"]
    logits_BLV = model(
        inputs_BL,
        batch.get("neighbours_BCNR"),
        batch.get("neighbour_lengths_BCN"),
        batch["segments_BL"],
        batch.get("encoded_BCNTSE"),
    )
    log_probs_LV = jax.nn.log_softmax(logits_BLV[0, :, :vocab_size], axis=-1)
    next_L1 = jnp.roll(inputs_BL[0], -1)[:, None]
    said_L1 = jnp.take_along_axis(log_probs_LV, next_L1, axis=1)
    highest_LA, tokens_LA = jax.lax.top_k(log_probs_LV, min(NUM_LIKELIEST, vocab_size))
    return said_L1[:, 0], tokens_LA, highest_LA
