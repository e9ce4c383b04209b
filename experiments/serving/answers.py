"""Requests as tasks of the model's thread, and what comes of them, piece by piece.

The pieces of all texts of a request come through one queue to the loop that answers it.

Letters here: A likeliest tokens.
"""

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np

from data_pipeline.text.tokenizer import Tokenizer
from experiments.serving import forms
from experiments.serving.passages import Passages
from experiments.serving.refusals import RefusalError
from experiments.serving.scheduler import Scheduler, Task
from experiments.serving.transcript import Transcript, token_text
from retro_jax.continuous_batching import NEVER, Said, Scores, Wanted
from retro_jax.generation import Source
from retro_jax.numerics.sampling import Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for.

    Attributes:
        max_prompt_tokens: the window of the model, or less.
        max_tokens: of one text; a text that is to be longer ends there.
        max_time_s: from its arrival on.
        max_texts: prompts times n.
    """

    max_prompt_tokens: int
    max_tokens: int = 4096
    max_time_s: float = 600.0
    max_texts: int = 128


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text.

    Attributes:
        index: of the text in its request.
        text: what can be shown since the last piece.
        logprobs: one for each token since, if they were asked for.
        sources: spans of the text with the passages that were read for them, as JSON.
        finish: None while it goes on, else 'stop' or 'length'.
    """

    index: int
    text: str
    logprobs: list["TokenLogProb"]
    sources: list
    finish: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogProb:
    """A token of a text and how likely it was, by the model alone."""

    token: str
    offset: int  # characters of the text before it
    log_prob: float | None  # None for the first token of all
    likeliest: dict[str, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is to be continued, and how it is to be shown."""

    tokens: np.ndarray
    eod_id: int
    echo: bool = False
    num_logprobs: int | None = None


class Answer:
    """The texts of one request, as they are written."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        form: forms.Generation,
        num_tokens: int,
        *,
        tokenizer: Tokenizer,
        passages: Passages | None,
        limits: Limits,
    ):
        """Checks what is asked for; `start` begins.

        Raises:
            RefusalError: for what is more than the limits allow.
        """
        self.num_prompt_tokens = sum(len(prompt.tokens) for prompt in prompts)
        self.created = int(time.time())
        self.id = secrets.token_hex(12)
        self._limits, self._tokenizer, self._passages = limits, tokenizer, passages
        self._queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._check(prompts, form)
        deadline_s = time.monotonic() + limits.max_time_s
        num_tokens = min(num_tokens, limits.max_tokens)
        self._texts = [
            _Text(index, prompt, form, num_tokens, tokenizer, self._give)
            for index, prompt in enumerate(p for p in prompts for _ in range(form.n))
        ]
        self._tasks = [text.task(form, deadline_s) for text in self._texts]
        self._scheduler: Scheduler | None = None

    def _check(self, prompts: Sequence[Prompt], form: forms.Generation) -> None:
        most, limits = self._limits.max_prompt_tokens, self._limits
        if len(prompts) * form.n > limits.max_texts:
            raise RefusalError(
                f"{len(prompts)} prompts with n = {form.n} are more than "
                f"{limits.max_texts} texts",
                param="n" if form.n > 1 else "prompt",
            )
        for prompt in prompts:
            longest = len(prompt.tokens)
            if longest > most:
                raise RefusalError(
                    f"This model's maximum context length is {most} tokens. However, "
                    f"your prompt has {longest} tokens. Please reduce its length.",
                    param="prompt",
                    code="context_length_exceeded",
                )

    @property
    def num_texts(self) -> int:
        """Prompts times n."""
        return len(self._texts)

    @property
    def num_generated_tokens(self) -> int:
        """New tokens of all texts so far."""
        return sum(text.num_new for text in self._texts)

    @property
    def usage(self) -> dict:
        """What was used, as JSON."""
        prompt, made = self.num_prompt_tokens, self.num_generated_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
        }

    def start(self, scheduler: Scheduler) -> None:
        """Puts the texts into the queue; RefusalError if there is no room."""
        tasks = [task for task in self._tasks if task is not None]
        scheduler.submit(tasks)
        self._scheduler = scheduler
        for text, task in zip(self._texts, self._tasks, strict=True):
            if task is None:
                text.end()

    def cancel(self) -> None:
        """Ends what is under way: nobody waits for it any more."""
        if self._scheduler is not None:
            self._scheduler.cancel([task for task in self._tasks if task is not None])

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all texts, as they come, until all have ended.

        Raises whatever the model's thread failed with.
        """
        left = len(self._texts)
        while left:
            piece = await self._queue.get()
            if isinstance(piece, Exception):
                raise piece
            if piece.sources:
                # Looked up here: the model's thread has better things to do.
                shown = await asyncio.to_thread(self._shown, piece.sources)
                piece = dataclasses.replace(piece, sources=shown)
            yield piece
            left -= piece.finish is not None

    def _give(self, piece: Piece | Exception) -> None:
        """Hands a piece over from the model's thread."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)
        except RuntimeError:  # the loop has ended, and with it whoever waits
            self.cancel()

    def _shown(self, spans: list["_Span"]) -> list[dict]:
        """Spans with their passages, as JSON."""
        return [
            {
                "start": span.start,
                "end": span.end,
                "text": span.text,
                "log_prob": span.log_prob,
                "problem": span.source.problem,
                "passages": self._passages.read(span.source, span.text)
                if self._passages is not None
                else [],
            }
            for span in spans
        ]


@dataclasses.dataclass(frozen=True, slots=True)
class _Span:
    """Characters of a text, and what could be read for them."""

    start: int
    end: int
    text: str
    log_prob: float
    source: Source


@dataclasses.dataclass(slots=True)
class _Chunk:
    """Tokens of a chunk of the model, as far as they are said."""

    start: int  # in characters
    log_prob: float = 0.0
    num_tokens: int = 0
    source: Callable[[], Source | None] | None = None


class _Text:
    """One text of an answer; what it takes it takes in the model's thread."""

    def __init__(
        self,
        index: int,
        prompt: Prompt,
        form: forms.Generation,
        num_tokens: int,
        tokenizer: Tokenizer,
        give: Callable[[Piece | Exception], None],
    ):
        self._index, self._prompt, self._num_tokens = index, prompt, num_tokens
        self._tokenizer, self._give = tokenizer, give
        self._transcript = Transcript(tokenizer, form.stops)
        if prompt.echo:
            self._transcript.echo(prompt.tokens)
        self._logprobs: list[tuple[str, float | None, dict[str, float] | None]] = []
        self._num_shown = self._num_told = 0
        self._spans: list[_Span] = []  # whose text is not shown yet
        self._chunk = _Chunk(0)
        self.num_new = 0
        is_scored = prompt.echo and prompt.num_logprobs is not None
        # The next token of a prompt that is scored is there in the same pass.
        is_greedy = form.temperature == 0 and form.repetition_penalty == 1
        self._ends_with_scores = is_scored and (
            num_tokens == 0 or (num_tokens == 1 and is_greedy)
        )
        self._is_scored = is_scored

    def task(self, form: forms.Generation, deadline_s: float) -> Task | None:
        """What the model's thread is asked for; None if that is nothing."""
        prompt = self._prompt
        if self._num_tokens == 0 and not self._is_scored:
            return None
        num_neighbours = form.num_neighbours if form.retrieval else 0
        seed = secrets.randbits(32) if form.seed is None else form.seed
        wanted = Wanted(
            prompt=prompt.tokens,
            num_tokens=self._num_tokens,
            sampling=Sampling(
                temperature=form.temperature,
                top_k=max(form.top_k, 0),
                top_p=form.top_p,
                min_p=form.min_p,
                repetition_penalty=form.repetition_penalty,
                presence_penalty=form.presence_penalty,
                frequency_penalty=form.frequency_penalty,
                seed=(seed + self._index) % 2**32,
            ),
            eod_id=NEVER if form.ignore_eos else prompt.eod_id,
            num_neighbours=num_neighbours,
            effects=form.effects,
            likeliest=bool(prompt.num_logprobs),
        )
        return Task(
            wanted=None if self._ends_with_scores else wanted,
            score=prompt.tokens if self._is_scored else None,
            num_neighbours=num_neighbours,
            take=self._take,
            fail=self._give,
            deadline_s=deadline_s,
        )

    def end(self) -> None:
        """Ends a text to which nothing is added."""
        self._show("length")

    def _take(self, made: Said | Scores) -> bool:
        try:
            return self._scored(made) if isinstance(made, Scores) else self._said(made)
        except Exception as error:  # noqa: BLE001  a fault of ours ends one text, not all
            self._give(error)
            return True

    def _scored(self, scores: Scores) -> bool:
        """Takes how likely the prompt is, and the token after it if that is all."""
        tokens = self._prompt.tokens
        for place, token in enumerate(tokens):
            self._note(
                token,
                scores.log_probs_L[place] if place else None,
                scores.likeliest_tokens_LA[place],
                scores.likeliest_log_probs_LA[place],
            )
        if not self._ends_with_scores:
            return False
        if self._num_tokens:
            tokens_A = scores.likeliest_tokens_LA[len(tokens)]
            log_probs_A = scores.likeliest_log_probs_LA[len(tokens)]
            self._note(tokens_A[0], log_probs_A[0], tokens_A, log_probs_A)
            self._transcript.add(tokens_A[:1], is_last=True)
            self.num_new = 1
        self._show("length")
        return True

    def _said(self, said: Said) -> bool:
        """Takes what a step has added."""
        if not self._chunk.num_tokens:
            self._chunk = _Chunk(self._transcript.num_decoded)
        self._transcript.add(said.tokens, is_last=bool(said.finish))
        self.num_new += len(said.tokens)
        self._chunk.num_tokens += len(said.tokens)
        self._chunk.log_prob += float(said.log_probs.sum())
        self._chunk.source = said.source or self._chunk.source
        if self._prompt.num_logprobs is not None:
            for place, token in enumerate(said.tokens):
                likeliest = said.likeliest_tokens_LA, said.likeliest_log_probs_LA
                self._note(
                    token,
                    said.log_probs[place],
                    *(() if all_A is None else all_A[place] for all_A in likeliest),
                )
        finish = {"": None, "end": "stop"}.get(said.finish, "length")
        if self._transcript.stopped:
            finish = "stop"
        if finish or said.ends_chunk:
            self._end_chunk()
        self._show(finish)
        return finish is not None

    def _end_chunk(self) -> None:
        """Keeps what was read for the chunk that ends here, if anything was said in it."""
        chunk, end = self._chunk, self._transcript.num_decoded
        self._chunk = _Chunk(end)
        source = chunk.source() if chunk.source and chunk.num_tokens else None
        if source is not None:
            self._spans.append(_Span(chunk.start, end, "", chunk.log_prob, source))

    def _note(self, token, log_prob, tokens_A, log_probs_A) -> None:
        """Keeps a token and how likely it was."""
        name = token_text(self._tokenizer, int(token))
        if log_prob is None:
            self._logprobs.append((name, None, None))
            return
        said, likeliest = _finite(log_prob), None
        if most := self._prompt.num_logprobs:
            likeliest = {
                token_text(self._tokenizer, int(other)): _finite(value)
                for other, value in zip(
                    tokens_A[:most], log_probs_A[:most], strict=True
                )
            }
            likeliest.setdefault(name, said)
        self._logprobs.append((name, said, likeliest))

    def _show(self, finish: str | None) -> None:
        """Gives what can be shown since the last time."""
        transcript, length = self._transcript, len(self._transcript.text)
        shown = self._spans if finish else [s for s in self._spans if s.end <= length]
        self._spans = self._spans[len(shown) :]
        spans = [
            dataclasses.replace(
                span,
                start=min(span.start, length),
                end=min(span.end, length),
                text=transcript.text[span.start : span.end],
            )
            for span in shown
        ]
        told = transcript.num_tokens if finish else transcript.num_shown_tokens
        told = min(told, len(self._logprobs))
        entries = [
            TokenLogProb(name, transcript.starts[place], log_prob, likeliest)
            for place, (name, log_prob, likeliest) in enumerate(
                self._logprobs[self._num_told : told], start=self._num_told
            )
        ]
        text = transcript.text[self._num_shown :]
        self._num_shown, self._num_told = length, told
        if text or spans or finish:
            self._give(Piece(self._index, text, entries, spans, finish))


_LEAST_LOG_PROB = -9999.0  # JSON has no infinity


def _finite(log_prob: float) -> float:
    return max(float(log_prob), _LEAST_LOG_PROB)
