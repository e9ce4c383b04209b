"""Text, token by token, with neighbours that are retrieved for every completed chunk.

Where the neighbours come from is the caller's: anything that satisfies `Retriever`. Tokens
are made on the device, one after the other from what is kept of those before them
(`model/incremental.py`): a whole chunk in one loop, or a few at a time for those who show
them at once. The host retrieves between two chunks.

A model sees the window that it was trained on. When that is full its older half leaves, and
what is kept is made anew of the other: nothing of what has left is in it, and all places
count from the window's beginning, as in training. So it makes no difference whether
positions are distances (the paper), rotations, or rotations behind a token that opens every
sequence (pretrained decoders). Where a window begins depends on nothing but the number of
the chunk that is written: a text goes on as it would have without a stop.

Letters here: A likeliest tokens, told beside the one that was drawn; P tokens of a chunk
that were drawn in one loop.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.devices import sharding
from retro_jax.model import incremental, parameters
from retro_jax.numerics import sampling
from retro_jax.numerics.sampling import Sampling
from retro_jax.training.batch import Batch
from retro_jax.training.encodings import Encodings


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Which neighbours stood open while some tokens were generated.

    Attributes:
        start, stop: the tokens of the whole text (prompt included) that could read them.
        chunk_ids_N: chunks of the database; -1 = absent.
        distances_N: squared distances to the chunk that asked.
        problem: why nothing could be retrieved; None if it could.
        attention_N: share of cross-attention that each had, over the new tokens.
        effects_N: how much likelier each made what was said, in nats: its log-probability
            less that with this neighbour absent. None if it was not asked for.
    """

    start: int
    stop: int
    chunk_ids_N: np.ndarray
    distances_N: np.ndarray
    problem: str | None = None
    attention_N: np.ndarray | None = None
    effects_N: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Tokens after a prompt, and what was retrieved for them.

    Attributes:
        log_probs: of each token, by the model alone, in nats.
        finish: why it ended: 'end' of the document, 'stop' or 'length'.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    sources: list[Source]
    finish: str


def generate(
    cfg: ModelConfig,
    params: parameters.Parameters,
    prompts: Sequence[np.ndarray],
    retriever: Retriever | None,
    *,
    num_tokens: int,
    window_chunks: int,
    num_neighbours: int,
    eod_id: int,
    settings: Sequence[Sampling] = (Sampling(),),
    vocab_size: int | None = None,
    encodings: Encodings | None = None,
    stop: Callable[[np.ndarray], int | None] | None = None,
    effects: bool = False,
    overlapped: bool = False,
) -> list[Generated]:
    """Continues prompts, together.

    A prompt is padded on the left so that it ends with a chunk: its last chunk's
    neighbours are then there for the first new token, even if the prompt is shorter than
    a chunk. (Positions are relative, padding is masked: nothing else changes.)

    Args:
        prompts: token ids, at least one each.
        retriever: None generates without retrieval.
        num_tokens: new tokens at most; less if the document ends.
        window_chunks: C, chunks that the model sees at a time; as in training.
        settings: how each prompt's tokens are chosen; one serves all.
        vocab_size: of the tokenizer, where the model's is rounded up; None = the model's.
        encodings: what neighbours are read as, where a decoder reads them itself.
        stop: is given a row's new tokens after each chunk; says how many of them are
            kept if the text ends there, else None.
        effects: whether each neighbour's effect is measured: as long again for each.
        overlapped: see `Library`.
    Raises:
        ValueError: for an empty prompt, or settings by which nothing can be chosen.
    Source: Borgeaud et al. 2022, section 2 (retrieval while sampling); the left padding
        is that of Wang et al. 2023.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("the prompt is empty: give at least one token to continue")
    texts = [Text(cfg.chunk_len, prompt, window_chunks) for prompt in prompts]
    if num_tokens > 0:
        # A fused kernel gains nothing on few rows, which no mesh divides.
        cfg = dataclasses.replace(cfg, attention="einsum", remat="none")
        library = Library(
            retriever, cfg.neighbour_len, num_neighbours, overlapped=overlapped
        )
        library.retrieve(texts)
        decoder = Decoder(cfg, params, encodings, window_chunks, library)
        decoder.begin(texts, settings, vocab_size or cfg.vocab_size)
        while not all(text.finish for text in texts):
            made = decoder.more(texts, num_tokens - texts[0].num_new, eod_id)
            for row, text in enumerate(texts):
                more = text.say(made, row, eod_id, stop, num_tokens)
                if effects and more:
                    text.add_effects(decoder.log_probs_without(text, row))
            library.retrieve([text for text in texts if not text.finish])
    return [text.generated() for text in texts]


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """What was retrieved with one chunk."""

    tokens_NR: np.ndarray
    lengths_N: np.ndarray
    chunk_ids_N: np.ndarray
    distances_N: np.ndarray
    problem: str | None = None


class Made(NamedTuple):
    """Some tokens of a chunk, on the host; the mass is None where nothing was read."""

    tokens_BP: np.ndarray
    log_probs_BP: np.ndarray
    mass_BPN: np.ndarray | None
    likeliest_tokens_BPA: np.ndarray
    likeliest_log_probs_BPA: np.ndarray


class Text:
    """A row: its tokens, and what was retrieved with each whole chunk of them."""

    def __init__(
        self,
        chunk_len: int,
        prompt: np.ndarray,
        window_chunks: int,
        num_neighbours: int | None = None,
    ):
        """Begins with a prompt; of its neighbours so many are read, all if not given."""
        self.chunk_len, self._window_chunks = chunk_len, window_chunks
        self.num_neighbours = num_neighbours
        self.padding = -len(prompt) % chunk_len
        self.tokens = [0] * self.padding + [int(token) for token in prompt]
        self._start = len(self.tokens)
        self._log_probs: list[float] = []
        self.found: dict[int, _Found] = {}  # by the number of the chunk
        self.ahead: dict[int, Callable[[], _Found]] = {}  # what is looked for meanwhile
        self._mass: dict[int, np.ndarray] = {}  # of attention, in the chunk after it
        self._effects: dict[int, np.ndarray] = {}
        self.finish, self.num_said = "", 0  # '' = goes on; tokens that were kept

    @property
    def num_chunks(self) -> int:
        return len(self.tokens) // self.chunk_len

    @property
    def num_new(self) -> int:
        """New tokens, those behind the end of the text included."""
        return len(self.tokens) - self._start

    def window_start(self, chunk: int) -> int:
        """The number of the first chunk that is seen while this one is written.

        Half a window leaves at a time, so that a long one is read anew as seldom.
        """
        half = max(self._window_chunks // 2, 1)
        too_many = max(chunk + 1 - self._window_chunks, 0)
        return -(-too_many // half) * half

    @property
    def is_window_full(self) -> bool:
        """Whether the next chunk sees less of what is there than the last one did."""
        next_chunk = self.num_chunks
        return self.window_start(next_chunk) > self.window_start(next_chunk - 1)

    def chunks_from(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and segments from a chunk on; nothing where that is yet to come."""
        end = self.num_chunks * self.chunk_len
        tokens_L = np.array(self.tokens[first * self.chunk_len : end], np.int32)
        segments_L = np.ones_like(tokens_L)
        segments_L[: max(self.padding - first * self.chunk_len, 0)] = 0
        return tokens_L, segments_L

    def wanted(self) -> list[int]:
        """The chunks of the window whose neighbours are not there yet."""
        first = self.window_start(self.num_chunks - 1)
        return [c for c in range(first, self.num_chunks) if c not in self.found]

    def is_new(self, chunk: int) -> bool:
        """Whether a chunk is none of the prompt's."""
        return chunk * self.chunk_len >= self._start

    def real_tokens(self, chunk: int) -> np.ndarray:
        """The tokens of a chunk without padding."""
        start = chunk * self.chunk_len
        end = start + self.chunk_len
        return np.array(self.tokens[max(start, self.padding) : end], np.int32)

    def say(self, made: "Made", row: int, eod_id: int, stop, num_tokens: int) -> int:
        """Adds tokens of one chunk; gives how many of them are kept."""
        self.tokens += made.tokens_BP[row].tolist()
        self._log_probs += made.log_probs_BP[row].tolist()
        if self.finish:
            return 0
        before, new = self.num_said, np.array(self.tokens[self._start :], np.int32)
        self.num_said = min(len(new), num_tokens)
        if self.num_said >= num_tokens:
            self.finish = "length"
        ends = before + np.flatnonzero(new[before : self.num_said] == eod_id)
        if len(ends):
            self.num_said, self.finish = int(ends[0]), "end"
        kept = stop(new[: self.num_said]) if stop is not None else None
        if kept is not None:
            self.num_said, self.finish = kept, "stop"
        more = max(self.num_said - before, 0)
        if made.mass_BPN is not None and more:
            chunk, mass_N = self._last_read, made.mass_BPN[row, :more].sum(axis=0)
            self._mass[chunk] = self._mass.get(chunk, 0) + mass_N
        return more

    @property
    def _last_start(self) -> int:
        """Where the chunk begins whose tokens came last."""
        return (len(self.tokens) - 1) // self.chunk_len * self.chunk_len

    @property
    def _last_read(self) -> int:
        """The chunk whose neighbours the tokens that came last could read."""
        return self._last_start // self.chunk_len - 1

    def add_effects(self, log_probs_NM: np.ndarray | None) -> None:
        """Keeps what each neighbour did to what was said of the last chunk."""
        if log_probs_NM is None:
            return
        start, chunk = self._last_start - self._start, self._last_read
        said = np.array(self._log_probs[start : self.num_said])
        effects_N = said.sum() - log_probs_NM[:, : len(said)].sum(axis=1)
        is_there_N = self.found[chunk].lengths_N > 0
        self._effects[chunk] = np.where(is_there_N, effects_N, 0.0)

    def generated(self) -> Generated:
        """What was said, with the neighbours of each chunk and who could read them."""
        end = self._start + self.num_said
        chunks = [c for c in sorted(self.found) if (c + 1) * self.chunk_len < end]
        return Generated(
            tokens=np.array(self.tokens[self._start : end], np.int32),
            log_probs=np.array(self._log_probs[: self.num_said], np.float32),
            sources=[self._source(chunk) for chunk in chunks],
            finish=self.finish or "length",
        )

    def said_last(self, more: int) -> tuple[np.ndarray, np.ndarray]:
        """The last tokens that are kept, and their log-probabilities."""
        before, start = self.num_said - more, self._start
        return (
            np.array(self.tokens[start + before : start + self.num_said], np.int32),
            np.array(self._log_probs[before : self.num_said], np.float32),
        )

    def last_source(self) -> Source | None:
        """What the last chunk could read; None if nothing was said or looked for."""
        is_said = self._start + self.num_said > self._last_start
        return (
            self._source(self._last_read)
            if is_said and self._last_read in self.found
            else None
        )

    def _source(self, chunk: int) -> Source:
        """What was retrieved with a chunk, and which tokens could read it."""
        found, start = self.found[chunk], (chunk + 1) * self.chunk_len
        reach = self.chunk_len if self._window_chunks > 1 else 1
        mass_N = self._mass.get(chunk)
        return Source(
            start=start - self.padding,
            stop=min(start + reach, self._start + self.num_said) - self.padding,
            chunk_ids_N=found.chunk_ids_N,
            distances_N=found.distances_N,
            problem=found.problem,
            attention_N=None if mass_N is None else mass_N / max(mass_N.sum(), 1e-30),
            effects_N=self._effects.get(chunk),
        )


class Library:
    """Retrieves for chunks, all of one length at once.

    Overlapped, the neighbours of a new chunk are looked for while the next one is written,
    and read by the one after that: the query is a chunk old. The prompt is looked for
    before, so the first new chunk reads what it would read, and the second the same again.

    Source: Jiang et al. 2024 (PipeRAG, arXiv 2403.05676), with passages as they are found.
    """

    def __init__(
        self,
        retriever: Retriever | None,
        neighbour_len: int,
        num_neighbours: int,
        *,
        overlapped: bool = False,
    ):
        self._retriever, self._num_neighbours = retriever, num_neighbours
        self._pool = concurrent.futures.ThreadPoolExecutor(1) if overlapped else None
        absent_N = np.zeros(num_neighbours, np.int32)
        self.absent = _Found(
            np.zeros((num_neighbours, neighbour_len), np.int32),
            absent_N,
            absent_N.astype(np.int64) - 1,
            np.full(num_neighbours, np.inf, np.float32),
        )

    def retrieve(self, texts: Sequence[Text]) -> None:
        """Gives texts the neighbours that they lack; those that can't be had are absent.

        A service that is away costs a text its sources, not its end.
        """
        if self._retriever is None:
            return
        now: list[tuple[Text, int]] = []
        later: list[tuple[Text, int]] = []
        for text in texts:
            for chunk in text.wanted() if text.num_neighbours != 0 else ():
                is_late = self._pool is not None and text.is_new(chunk)
                (later if is_late else now).append((text, chunk))
        for (text, chunk), found in zip(now, self._found(_asked(now)), strict=True):
            text.found[chunk] = found
        if self._pool is None or not later:
            return
        for text, chunk in later:
            waited = text.ahead.pop(chunk, None)
            text.found[chunk] = text.found[chunk - 1] if waited is None else waited()
        looked_for = self._pool.submit(self._found, _asked(later))
        for place, (text, chunk) in enumerate(later):
            text.ahead[chunk + 1] = functools.partial(_of_place, looked_for, place)

    def _found(self, asked: Sequence["_Asked"]) -> list[_Found]:
        """What is found for each, in their order."""
        found = [self.absent] * len(asked)
        by_length: dict[int, list[int]] = {}
        for place, one in enumerate(asked):
            by_length.setdefault(len(one.tokens_M), []).append(place)
        for places in by_length.values():
            tokens_QM = np.stack([asked[place].tokens_M for place in places])
            try:
                assert self._retriever is not None
                answer = self._retriever.retrieve(tokens_QM, self._num_neighbours)
            except OSError as error:  # ConnectionError and TimeoutError among them
                absent = dataclasses.replace(self.absent, problem=str(error))
                for place in places:
                    found[place] = absent
                continue
            for row, place in enumerate(places):
                most = asked[place].num_neighbours or self._num_neighbours
                is_read_N = np.arange(self._num_neighbours) < most
                found[place] = _Found(
                    answer.tokens_QNR[row],
                    np.where(is_read_N, answer.lengths_QN[row], 0),
                    np.where(is_read_N, answer.chunk_ids_QN[row], -1),
                    answer.distances_QN[row],
                )
        return found

    def batch(self, rows: Sequence[Sequence[_Found | None]], num_chunks: int) -> Batch:
        """Neighbours of each row's chunks; nothing where all are absent."""
        each = [
            [found or self.absent for found in row]
            + [self.absent] * (num_chunks - len(row))
            for row in rows
        ]
        lengths_BCN = np.array([[found.lengths_N for found in row] for row in each])
        if not lengths_BCN.any():
            return {}
        tokens_BCNR = np.array([[found.tokens_NR for found in row] for row in each])
        return {
            "neighbours_BCNR": tokens_BCNR.astype(np.int32),
            "neighbour_lengths_BCN": lengths_BCN.astype(np.int32),
        }


class _Asked(NamedTuple):
    """A chunk whose neighbours are looked for, and how many of them; None = all."""

    tokens_M: np.ndarray
    num_neighbours: int | None


def _asked(pairs: Sequence[tuple[Text, int]]) -> list[_Asked]:
    return [
        _Asked(text.real_tokens(chunk), text.num_neighbours) for text, chunk in pairs
    ]


def _of_place(looked_for: concurrent.futures.Future, place: int) -> _Found:
    return looked_for.result()[place]


class _Draws(NamedTuple):
    """The tokens of a chunk as far as they are there, and what the next ones need."""

    tokens_BM: Int[Array, "B M"]
    log_probs_BM: Float[Array, "B M"]
    seen_BV: Bool[Array, "B V"]
    times_BV: Int[Array, "B V"]  # how often each token was drawn
    number_B: Int[Array, " B"]  # of all tokens that were drawn
    is_done_B: Bool[Array, " B"]
    likeliest: sampling.Likeliest  # of each token, where they are told

    def one_more(self, logits_BV, place, rows, eod_B, likeliest) -> "_Draws":
        """These with a token of each row more, at this place of the chunk."""
        batch, vocab_size = self.seen_BV.shape
        logits_BV = logits_BV[:, :vocab_size]
        token_B, log_prob_B = sampling.draw(
            logits_BV, rows, self.seen_BV, self.times_BV, self.number_B
        )
        return _Draws(
            self.tokens_BM.at[:, place].set(token_B),
            self.log_probs_BM.at[:, place].set(log_prob_B),
            self.seen_BV.at[jnp.arange(batch), token_B].set(True),
            self.times_BV.at[jnp.arange(batch), token_B].add(1),
            self.number_B + 1,
            self.is_done_B | (token_B == eod_B),
            jax.lax.cond(
                likeliest,
                lambda: self.likeliest.told(logits_BV, place),
                lambda: self.likeliest,
            ),
        )

    @classmethod
    def before(cls, texts: Sequence[Text], vocab_size: int) -> "_Draws":
        """Nothing drawn yet; what stands in the prompts has been seen."""
        batch, chunk_len = len(texts), texts[0].chunk_len
        seen_BV = np.zeros((batch, vocab_size), bool)
        for row, text in enumerate(texts):
            real = np.array(text.tokens[text.padding :])
            seen_BV[row, real[real < vocab_size]] = True
        return cls(
            jnp.zeros((batch, chunk_len), jnp.int32),
            jnp.zeros((batch, chunk_len), jnp.float32),
            jnp.asarray(seen_BV),
            jnp.zeros(seen_BV.shape, jnp.int32),
            jnp.zeros(batch, jnp.int32),
            jnp.zeros(batch, bool),
            sampling.Likeliest.room((batch, chunk_len), vocab_size),
        )


class Decoder:
    """The model with what it keeps of the texts of a batch."""

    def __init__(
        self,
        cfg: ModelConfig,
        params: parameters.Parameters,
        encodings: Encodings | None,
        window_chunks: int,
        library: Library,
    ):
        self._cfg, self._params, self._encodings = cfg, params, encodings
        self._window_chunks, self._library = window_chunks, library
        self._num_places = window_chunks * cfg.chunk_len
        self._table = _distances(cfg, self._num_places, params)
        self._place = 0  # of the next token in its chunk
        # The last chunk is said again from what was kept before it, and of rows whose
        # window has moved from what is kept since, a row of that.
        self._start: incremental.Cache | None = None
        self._moved_rows: dict[int, tuple[incremental.Cache, int]] = {}
        self._moving: list[int] = []  # rows, before the chunk's second token is drawn
        self._mass_BMN: jax.Array | None = None

    @property
    def is_between_chunks(self) -> bool:
        """Whether texts can come and go: all have whole chunks."""
        return self._place == 0

    def begin(
        self, texts: Sequence[Text], settings: Sequence[Sampling], vocab_size: int
    ) -> None:
        """Reads the prompts, as far as they are in the window."""
        each = [*settings] * (len(texts) if len(settings) == 1 else 1)
        self._rows, self._place = sampling.rows(each), 0
        self._draws = _Draws.before(texts, vocab_size)
        self._cache = self._filled(texts)

    def enter(self, row: int, text: Text, settings: Sequence[Sampling]) -> None:
        """Reads a prompt into a row, in place of the text that was there; between chunks.

        Args:
            settings: of all rows.
        """
        self._rows = sampling.rows(settings)
        vocab_size = self._draws.seen_BV.shape[1]
        new = (
            self._filled([text]),
            _Draws.before([text], vocab_size),
        )
        kept = self._cache._replace(read=None, readable_BNS=None)
        self._cache, self._draws = _entered((kept, self._draws), new, row)

    def take(self, rows: Sequence[int], settings: Sequence[Sampling]) -> None:
        """Goes on with some of the rows, in this order; between chunks."""
        self._rows = sampling.rows(settings)
        kept = self._cache._replace(read=None, readable_BNS=None)
        self._cache, self._draws = _taken((kept, self._draws), np.array(rows))

    def more(
        self,
        texts: Sequence[Text],
        most: int,
        eod_id: int | Sequence[int],
        *,
        likeliest: bool = False,
    ) -> Made:
        """Draws up to `most` tokens of each row; a chunk's end and all rows' end it.

        Args:
            texts: what `begin`, `enter` and `take` have made of the rows; each has been
                given what was drawn before.
            eod_id: the token that ends a text, or that of each row.
            likeliest: whether the likeliest tokens are told beside those drawn.
        """
        first, chunk_len = self._place, self._cfg.chunk_len
        stop = min(first + most, chunk_len)
        is_done_B = jnp.array([bool(text.finish) for text in texts])
        self._draws = self._draws._replace(is_done_B=is_done_B)
        eod_B = np.broadcast_to(np.asarray(eod_id, np.int32), len(texts))
        how = (self._rows, eod_B, np.bool_(likeliest))
        if first == 0:
            logits_BV, mass_BN = self._begin_chunk(texts)
            self._draws, self._mass_BMN = _first_drawn(
                self._draws, logits_BV, mass_BN, *how
            )
        if stop > max(first, 1):
            self._move_window(texts)
            self._cache, self._draws, self._mass_BMN = _drawn(
                self._cfg,
                self._params,
                self._table,
                (self._cache, self._mass_BMN),
                self._draws,
                *how,
                np.int32(max(first, 1)),
                np.int32(stop),
            )
        self._place = stop % chunk_len
        return self._made(first, stop)

    def _made(self, first: int, stop: int) -> Made:
        """The tokens of these places. The whole chunk is sent: few shapes are compiled."""
        draws = self._draws
        whole = (draws.tokens_BM, draws.log_probs_BM, self._mass_BMN, *draws.likeliest)
        return Made(*jax.tree.map(lambda x: x[:, first:stop], sharding.on_host(whole)))

    def _begin_chunk(self, texts: Sequence[Text]):
        """Reads the last token of each row; gives the logits of the next, and the mass."""
        self._start, self._moved_rows = self._cache, {}
        self._moving = [row for row, text in enumerate(texts) if text.is_window_full]
        self._read = self._with_encodings(
            self._library.batch([[_last_found(text)] for text in texts], 1)
        )
        self._token_B = np.array([text.tokens[-1] for text in texts], np.int32)
        self._cache, logits_BV, mass_BN = self._completed(
            self._cache, self._token_B, self._read
        )
        return logits_BV, mass_BN

    def _move_window(self, texts: Sequence[Text]) -> None:
        """Lets the older half leave the rows whose window is full.

        The first token of the chunk belongs to the window before, in which what leaves was
        still to be seen.
        """
        rows, self._moving = self._moving, []
        if not rows:
            return
        # Few shapes are compiled: the first row stands for those that are not needed.
        count = min(1 << (len(rows) - 1).bit_length(), len(texts))
        places = np.array([*rows, *rows[:1] * (count - len(rows))])
        new = self._filled([texts[row] for row in places], of_next=True)
        self._moved_rows = {row: (new, place) for place, row in enumerate(rows)}
        read = {name: x[places] for name, x in self._read.items()}
        moved = self._moved(new, self._token_B[places], read)
        if len(rows) == len(texts):
            self._cache = moved
        else:
            self._cache = _scattered(self._cache, moved, places)

    def _moved(self, cache: incremental.Cache, token_B, read: Batch):
        """The cache that goes on in the new window; a window of a chunk begins empty."""
        if self._window_chunks == 1:
            return jax.tree.map(jnp.copy, cache)  # what goes on is written over
        return self._completed(cache, token_B, read)[0]

    def log_probs_without(
        self, text: Text, row: int
    ) -> Float[np.ndarray, "N M"] | None:
        """Log-probabilities of the tokens that came last with each neighbour absent.

        None if nothing was read. What is behind them in the chunk is of no meaning.
        """
        chunk_len = self._cfg.chunk_len
        first = (len(text.tokens) - 1) // chunk_len * chunk_len
        found = text.found.get(first // chunk_len - 1)
        if found is None or not found.lengths_N.any():
            return None
        size = len(found.lengths_N)
        lengths_BCN = np.repeat(found.lengths_N[None, None], size, axis=0)
        lengths_BCN[np.arange(size), 0, np.arange(size)] = 0
        read = self._with_encodings(
            {
                "neighbours_BCNR": np.repeat(found.tokens_NR[None, None], size, axis=0),
                "neighbour_lengths_BCN": lengths_BCN,
            }
        )
        token_B = np.full(size, text.tokens[first - 1], np.int32)
        start = _repeated(self._start, row, size)
        cache, logits_BV, _ = self._completed(start, token_B, read)
        if row in self._moved_rows:
            cache = self._moved(_repeated(*self._moved_rows[row], size), token_B, read)
        # One shape is compiled, whatever the length.
        tokens_BM = np.zeros((size, chunk_len), np.int32)
        said = text.tokens[first:]
        tokens_BM[:, : len(said)] = said
        vocab_size = self._draws.seen_BV.shape[1]
        scored_BM = _scored(
            self._cfg,
            vocab_size,
            self._params,
            self._table,
            cache,
            logits_BV,
            tokens_BM,
        )
        return sharding.on_host(scored_BM)

    def _completed(self, cache: incremental.Cache, token_B, read: Batch):
        """The cache with the last token of a chunk, the next one's logits, and the mass."""
        # New neighbours take the old ones' place.
        cache = cache._replace(read=None, readable_BNS=None)
        return _completed(self._cfg, self._params, self._table, cache, token_B, read)

    def _with_encodings(self, batch: Batch) -> Batch:
        if self._encodings is None:
            return batch
        return self._encodings.neighbours_added_to(self._params, batch)

    def _filled(
        self, texts: Sequence[Text], *, of_next: bool = False
    ) -> incremental.Cache:
        """What is kept of the window of each text, all but the last token.

        Args:
            of_next: whether the window is that of the next chunk, or of the last.
        """
        firsts = [text.window_start(text.num_chunks - (not of_next)) for text in texts]
        parts = [
            text.chunks_from(first) for text, first in zip(texts, firsts, strict=True)
        ]
        chunk_len = self._cfg.chunk_len
        # Few shapes are compiled, and short prompts cost little.
        longest = max([len(tokens_L) // chunk_len for tokens_L, _ in parts] + [1])
        num_chunks = min(1 << (longest - 1).bit_length(), self._window_chunks)
        shape = (len(texts), num_chunks * chunk_len)
        inputs_BL, segments_BL = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for row, (tokens_L, segments_L) in enumerate(parts):
            inputs_BL[row, : len(tokens_L)] = tokens_L
            segments_BL[row, : len(segments_L)] = segments_L
        found = [
            [text.found.get(chunk) for chunk in range(first, text.num_chunks)]
            for text, first in zip(texts, firsts, strict=True)
        ]
        batch = self._with_encodings(self._library.batch(found, num_chunks))
        batch |= {"inputs_BL": inputs_BL, "segments_BL": segments_BL}
        # A window of one chunk begins empty.
        num_tokens_B = np.array([max(len(tokens_L), 1) for tokens_L, _ in parts])
        return _filled(
            self._cfg,
            self._num_places,
            self._params,
            batch,
            num_tokens_B.astype(np.int32),
        )


def _last_found(text: Text) -> _Found | None:
    return text.found.get(text.num_chunks - 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _distances(cfg: ModelConfig, num_places: int, params):
    return incremental.distances(parameters.rebuild(cfg, params), num_places)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _filled(cfg: ModelConfig, num_places: int, params, batch, num_tokens_B):
    model = parameters.rebuild(cfg, params)
    return incremental.filled(
        model,
        batch["inputs_BL"],
        batch["segments_BL"],
        num_tokens_B,
        num_places,
        _neighbours(model, batch, batch["segments_BL"]),
        batch.get("encoded_BCNTSE"),
    )


def _neighbours(model, batch, segments_BL):
    return model.neighbours(
        batch.get("neighbours_BCNR"), batch.get("neighbour_lengths_BCN"), segments_BL
    )


@functools.partial(jax.jit, static_argnums=0)
def _completed(cfg: ModelConfig, params, table, cache, token_B, batch):
    """Reads the last token of a chunk, the first that reads the chunk's neighbours."""
    model = parameters.rebuild(cfg, params)
    segments_BM = jnp.ones((len(token_B), cfg.chunk_len), jnp.int32)
    return incremental.step(
        model,
        table,
        cache,
        token_B,
        cfg.chunk_len - 1,
        _neighbours(model, batch, segments_BM),
        batch.get("encoded_BCNTSE"),
    )


@jax.jit
def _entered(all_rows, one_row, row):
    return jax.tree.map(lambda x, new: x.at[row].set(new[0]), all_rows, one_row)


@functools.partial(jax.jit, donate_argnums=0)
def _scattered(all_rows, some_rows, which_B):
    return jax.tree.map(lambda x, new: x.at[which_B].set(new), all_rows, some_rows)


def _repeated(rows, row: int, size: int):
    """One of the rows so many times."""
    return jax.tree.map(lambda x: jnp.repeat(x[row : row + 1], size, axis=0), rows)


@jax.jit
def _taken(all_rows, which_B):
    return jax.tree.map(lambda x: x[which_B], all_rows)


@jax.jit
def _first_drawn(draws, logits_BV, mass_BN, rows, eod_B, likeliest):
    """Draws the first token of a chunk."""
    batch, chunk_len = draws.tokens_BM.shape
    mass_BMN = None
    if mass_BN is not None:
        shape = (batch, chunk_len, mass_BN.shape[1])
        mass_BMN = jnp.zeros(shape).at[:, 0].set(mass_BN)
    return draws.one_more(logits_BV, 0, rows, eod_B, likeliest), mass_BMN


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _drawn(cfg, params, table, start, draws, rows, eod_B, likeliest, first, stop):
    """Draws tokens of a chunk one after the other, until all rows have ended.

    The last of them is not read yet: the next one does that.

    Args:
        start: the cache with all tokens before the last one, and the mass of attention
            so far. They are written over.
        likeliest: whether the likeliest tokens are told as well.
        first, stop: the places in the chunk, the first at least 1.
    """
    model = parameters.rebuild(cfg, params)

    def goes_on(carry):
        place, _, draws, _ = carry
        return (place < stop) & ~jnp.all(draws.is_done_B)

    def one_more(carry):
        """Reads a token of each row and draws the next."""
        place, cache, draws, mass_BMN = carry
        token_B = draws.tokens_BM[:, place - 1]
        cache, logits_BV, mass_BN = incremental.step(
            model, table, cache, token_B, place - 1
        )
        if mass_BN is not None:
            mass_BMN = mass_BMN.at[:, place].set(mass_BN)
        draws = draws.one_more(logits_BV, place, rows, eod_B, likeliest)
        return place + 1, cache, draws, mass_BMN

    cache, mass_BMN = start
    carry = jax.lax.while_loop(goes_on, one_more, (first, cache, draws, mass_BMN))
    return carry[1:]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scored(cfg, vocab_size: int, params, table, cache, logits_BV, tokens_BM):
    """Log-probabilities of tokens that were said, all read in one pass."""
    model = parameters.rebuild(cfg, params)
    _, logits_BMV = incremental.steps(model, table, cache, tokens_BM, 0)
    before_BMV = jnp.concatenate([logits_BV[:, None], logits_BMV[:, :-1]], axis=1)
    log_probs_BMV = jax.nn.log_softmax(before_BMV[..., :vocab_size], axis=-1)
    return jnp.take_along_axis(log_probs_BMV, tokens_BM[..., None], axis=2)[..., 0]
