"""A server whose model says what it is told to, without JAX: quick, and just as odd."""

import contextlib
import dataclasses
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from starlette.testclient import TestClient

from data_pipeline.text.tokenizer import Tokenizer
from experiments.serving import app, guard
from experiments.serving.answers import Limits
from experiments.serving.passages import Passages
from experiments.serving.scheduler import Scheduler
from retro_jax.continuous_batching import Said, Scores, Wanted
from retro_jax.generation import Source
from tests import fast_tokenizers

CHUNK_LEN, STEP_TOKENS, WINDOW, VOCAB = 4, 2, 64, 405
SAYS = (
    " the capital of number 7 isn't it: caf\u00e9 \U0001f99c 49, and so on, and so on."
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def tokenizer(template: str | None = TEMPLATE) -> Tokenizer:
    """A small tokenizer of a pretrained decoder's kind."""
    made = Tokenizer(json.dumps(fast_tokenizers.byte_level()).encode(), "tests")
    made.chat_template = template
    return made


def until(holds: Callable[[], bool]) -> None:
    """Waits for something that another thread does."""
    end_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.005)


class ScriptedModel:
    """Says the same to everybody, and tells how likely it all was.

    A chunk takes several steps, and texts join between chunks, as with a real one.

    Attributes:
        hold: while it is cleared no step is done.
        joined, left: what has come and gone.
        error: is raised by the next step.
    """

    def __init__(self, tokens: Sequence[int], passages=None, most_texts: int = 4):
        self.tokens, self.most_texts, self.window_tokens = tokens, most_texts, WINDOW
        self._passages = passages
        self._texts: dict = {}
        self._place = 0  # in the chunk
        self.hold = threading.Event()
        self.hold.set()
        self.joined: list[Wanted] = []
        self.left: list = []
        self.error: Exception | None = None
        self.most_at_once = 0
        self.problem: str | None = None
        self.step_s = 0.0

    @property
    def num_texts(self) -> int:
        return len(self._texts)

    @property
    def num_free(self) -> int:
        if self._texts and self._place:
            return 0
        return self.most_texts - len(self._texts)

    def join(self, name, wanted: Wanted) -> None:
        assert self.num_free
        self._place = 0
        self.joined.append(wanted)
        self._texts[name] = [wanted, 0]

    def leave(self, name) -> None:
        if self._texts.pop(name, None) is not None:
            self.left.append(name)

    def step(self) -> dict:
        self.hold.wait(timeout=30)
        time.sleep(self.step_s)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.most_at_once = max(self.most_at_once, len(self._texts))
        is_first = any(done == 0 for _, done in self._texts.values())
        most = 1 if is_first else min(STEP_TOKENS, CHUNK_LEN - self._place)
        self._place = (self._place + most) % CHUNK_LEN
        return {name: self._said(name, most) for name in list(self._texts)}

    def _said(self, name, most: int) -> Said:
        wanted, done = self._texts[name]
        script = np.resize(self.tokens, 4000)
        if wanted.eod_id >= 0:
            script = np.append(self.tokens, wanted.eod_id)
        more = script[done : min(done + most, wanted.num_tokens)]
        finish = "length" if done + len(more) >= wanted.num_tokens else ""
        if wanted.eod_id in more:
            more, finish = more[: list(more).index(wanted.eod_id)], "end"
        self._texts[name][1] += len(more)
        likeliest = np.stack([more, *[np.full_like(more, 7 + n) for n in range(4)]], 1)
        source = None
        if self._passages is not None and wanted.num_neighbours != 0:
            source = functools.partial(self._source, wanted)
        if finish:
            del self._texts[name]
        return Said(
            tokens=more,
            log_probs=np.full(len(more), -0.5, np.float32),
            likeliest_tokens_LA=likeliest if wanted.likeliest else None,
            likeliest_log_probs_LA=np.full(likeliest.shape, -0.5, np.float32)
            - np.arange(5, dtype=np.float32)
            if wanted.likeliest
            else None,
            source=source,
            ends_chunk=bool(finish) or self._place == 0,
            finish=finish,
        )

    def _source(self, wanted: Wanted) -> Source:
        most = wanted.num_neighbours or 2
        absent = np.full(most, -1)
        if self.problem:
            return Source(
                start=0,
                stop=1,
                chunk_ids_N=absent,
                distances_N=absent * 1.0,
                problem=self.problem,
            )
        chunk = np.resize(wanted.prompt, 8)
        found = self._passages.retrieve(chunk[None], most)
        return Source(
            start=0,
            stop=1,
            chunk_ids_N=found.chunk_ids_QN[0],
            distances_N=found.distances_QN[0],
            attention_N=np.full(most, 1 / most),
            effects_N=np.ones(most) if wanted.effects else None,
        )

    def scores(self, prompt, num_neighbours) -> Scores:
        tokens = np.append(prompt, self.tokens[0])
        likeliest_LA = np.stack(
            [tokens, *[np.full_like(tokens, n) for n in range(4)]], 1
        )
        log_probs_LA = np.tile(-np.arange(1, 6, dtype=np.float32), (len(tokens), 1))
        return Scores(-np.ones(len(prompt), np.float32), likeliest_LA, log_probs_LA)


@dataclasses.dataclass
class Stub:
    """A server of a scripted model, and a client of it."""

    client: TestClient
    model: ScriptedModel
    scheduler: Scheduler
    tokenizer: Tokenizer
    application: Callable

    def ask(self, path: str = "/v1/completions", **body):
        """The answer to a POST."""
        return self.client.post(path, json=body)

    def stream(self, path: str = "/v1/completions", **body) -> list[dict]:
        """The objects of a stream, which must end as streams do."""
        lines = self.lines(path, **body)
        data = [line[6:] for line in lines if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        return [json.loads(each) for each in data[:-1]]

    def lines(self, path: str = "/v1/completions", **body) -> list[str]:
        """The lines of a stream that are not empty."""
        answer = self.client.post(path, json={**body, "stream": True})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [line for line in answer.text.splitlines() if line]


@contextlib.contextmanager
def served(
    passages: Passages | None = None,
    *,
    of: Tokenizer | None = None,
    says: str = SAYS,
    most_waiting: int = 16,
    most_texts: int = 4,
    limits: dict | None = None,
    **settings,
) -> Iterator[Stub]:
    """Serves a scripted model in this process."""
    chosen = of or tokenizer()
    model = ScriptedModel(chosen.encode(says), passages, most_texts)
    scheduler = Scheduler(model, most_waiting=most_waiting)
    whole = {"max_prompt_tokens": WINDOW, "max_tokens": 64, "max_texts": 16}
    application = app.application(
        app.Served(
            name="scripted",
            tokenizer=chosen,
            scheduler=scheduler,
            passages=passages,
            limits=Limits(**(whole | (limits or {}))),
            chunk_len=CHUNK_LEN,
            window_tokens=WINDOW,
            num_neighbours=2,
            hosts=guard.LOOPBACK | {"testserver"},
            **settings,
        )
    )
    with TestClient(application, raise_server_exceptions=False) as client:
        yield Stub(client, model, scheduler, chosen, application)
