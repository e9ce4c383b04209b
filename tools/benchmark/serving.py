"""First tokens, tokens a second and failures of a model's server, retrieval on and off.

    python -m tools.benchmark serving --workdir=work/retrofit

Two servers of one trained model, `retro serve-model` with its retrieval and without, each a
process of its own; the clients are threads of this one. Prompts are passages of the model's
own database, so that something is found.
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from experiments.launching.local import free_port
from tools.benchmark.result import (
    Result,
    Row,
    alternate,
    describe_machine,
    positive,
    progress,
    ratio,
    significant,
)

_START_S, _ANSWER_S = 600.0, 600.0
_COMPILING = 8  # prompts of all shapes that come before those that are timed
_SAMPLES = 40  # of a soak's memory
_WARM_UP = 16  # requests after which a soak's memory counts


class Client:
    """Questions to a server process of this machine."""

    def __init__(self, port: int, process_id: int):
        """Says where the server listens, and which process it is."""
        self.port, self._process_id = port, process_id

    def ask(
        self, verb: str, path: str, body: dict | None = None
    ) -> tuple[int, dict, dict]:
        """Sends a request; gives the status, the answer and its headers."""
        with self._sent(verb, path, body) as answer:
            content = answer.read()
            return answer.status, json.loads(content), dict(answer.getheaders())

    def stream(self, body: dict) -> tuple[int, float]:
        """Streams a text; gives the status and when its first piece came, or its end.

        Raises:
            ValueError: if the stream ends before it says so, or with an error.
        """
        start_s, first_s, last = time.perf_counter(), None, b""
        with self._sent("POST", "/v1/completions", body | {"stream": True}) as answer:
            for line in answer:
                if first_s is None and _shows_text(line):
                    first_s = time.perf_counter() - start_s
                last = line.strip() or last
            if answer.status == 200 and last != b"data: [DONE]":
                raise ValueError(f"a stream ended with {last[:200]!r}")
            now_s = time.perf_counter() - start_s
            return answer.status, now_s if first_s is None else first_s

    def leave_early(self, body: dict) -> int:
        """Begins to read a stream, and goes away; gives the status."""
        with self._sent("POST", "/v1/completions", body | {"stream": True}) as answer:
            answer.readline()
            return answer.status

    def is_answered(self) -> bool:
        """Whether the server is there and well."""
        with contextlib.suppress(OSError):
            return self.ask("GET", "/health")[0] == 200
        return False

    @contextlib.contextmanager
    def _sent(
        self, verb: str, path: str, body: dict | None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=_ANSWER_S
        )
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            content = None if body is None else json.dumps(body)
            connection.request(verb, path, content, headers)
            yield connection.getresponse()

    def resources(self) -> tuple[float, int, int]:
        """Gives memory in MB, open files and threads of the process."""
        process = pathlib.Path(f"/proc/{self._process_id}")
        status = dict(
            line.split(":", 1) for line in (process / "status").read_text().splitlines()
        )
        memory_mb = int(status["VmRSS"].split()[0]) / 1024
        return memory_mb, len(os.listdir(process / "fd")), int(status["Threads"])


@contextlib.contextmanager
def _serving(workdir: str, *flags: str) -> Iterator[Client]:
    """Serves a run while the block runs; ValueError with its last line if that ends."""
    port = free_port()
    command = [sys.executable, "-m", "experiments.server", f"--workdir={workdir}"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, f"--port={port}", *flags], stderr=log)
        try:
            client = Client(port, process.pid)
            end_s = time.monotonic() + _START_S
            while not client.is_answered():
                if process.poll() is not None or time.monotonic() > end_s:
                    log.seek(0)
                    lines = log.read().strip().splitlines() or ["it said nothing"]
                    raise ValueError(f"the server did not start: {lines[-1]}")
                time.sleep(0.2)
            yield client
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()


def _shows_text(line: bytes) -> bool:
    if not line.startswith(b"data: {"):
        return False
    return any(choice["text"] for choice in json.loads(line[6:]).get("choices", ()))


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `serving`."""
    command.add_argument("--workdir", default="work/retrofit", help="a trained run's")
    command.add_argument(
        "--parts", default="first,rates,scores,crowd,soak", help="some of them"
    )
    command.add_argument("--prompt_tokens", type=positive, default=128)
    command.add_argument("--tokens", type=positive, default=64, help="of each text")
    command.add_argument(
        "--clients", type=positive, nargs="+", default=[1, 8, 16], help="of `rates`"
    )
    command.add_argument("--crowd", type=positive, default=200, help="clients at once")
    command.add_argument("--soak_s", type=positive, default=600)


def run(args: argparse.Namespace) -> Result:
    """Starts the servers and measures the parts that are asked for."""
    parts = args.parts.split(",")
    known = {f.__name__[1:]: f for f in (_first, _rates, _scores, _crowd, _soak)}
    if unknown := sorted(set(parts) - set(known)):
        raise ValueError(f"no part {unknown[0]!r}: there are {', '.join(known)}")
    progress("starting two servers")
    off = ["--config.evaluation.retrieval=False"]
    with _serving(args.workdir, *off) as without, _serving(args.workdir) as reads:
        servers = {"off": without, "on": reads}
        prompts = _prompts(servers["on"], args.prompt_tokens)
        rows: list[Row] = []
        for part in parts:
            progress(f"part {part}")
            for row in known[part](args, servers, prompts):
                rows.append({"part": part} | row)
    conditions = {
        "model": pathlib.Path(args.workdir).name,
        "prompt tokens": args.prompt_tokens,
        "tokens of a text": args.tokens,
        "rounds": args.rounds,
        **describe_machine(["jax", "uvicorn"]),
    }
    notes = [
        "Servers take turns round by round; ratios of each round (least to largest).",
        "A client sends its next request when the last one is answered.",
        "First pieces are of prompts that come once.",
        "Rates repeat their texts: what a decoder has read of their passages is kept.",
    ]
    return Result(name="serving", conditions=conditions, rows=rows, notes=notes)


def _prompts(server: Client, num_tokens: int, count: int = 256) -> list[list[int]]:
    """Tokens of passages of the database, each prompt begun at another one."""
    rng, texts = random.Random(0), []
    most = server.ask("GET", "/health")[1]["database"]["chunks"]
    for _ in range(count):
        text, chunk = "", rng.randrange(most)
        tokens: list[int] = []
        while len(tokens) < num_tokens:
            status, passage, _ = server.ask("GET", f"/v1/passages/{chunk % most}")
            text += passage["text"] if status == 200 else ""
            tokens = server.ask("POST", "/tokenize", {"prompt": text})[1]["tokens"]
            chunk += 1
        texts.append(tokens[:num_tokens])
    return texts


def _body(prompt: Sequence[int], tokens: int) -> dict:
    return {
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


def _first(args, servers: dict[str, Client], prompts) -> list[Row]:
    """Times the first piece of streams that come alone."""
    found: dict[str, list[float]] = {name: [] for name in servers}
    for prompt in prompts[: _COMPILING + 8 * args.rounds]:
        for name, server in servers.items():
            status, first_s = server.stream(_body(prompt, 8))
            if status != 200:
                raise ValueError(f"a stream was refused: status {status}")
            found[name].append(1000 * first_s)
    timed = {name: times_ms[_COMPILING:] for name, times_ms in found.items()}
    return [
        {
            "retrieval": name,
            "first piece, ms": significant(statistics.median(times_ms), 3),
            "p95, ms": significant(_p95(times_ms), 3),
            "by off": ratio(times_ms, timed["off"]),
        }
        for name, times_ms in timed.items()
    ]


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[max(0, round(0.95 * len(values)) - 1)]


def _rates(args, servers: dict[str, Client], prompts) -> list[Row]:
    """Times texts of some clients at once, each of which writes two."""
    rows: list[Row] = []
    alone_ms: dict[str, float] = {}
    alone_s: dict[str, list[float]] = {}
    for num_clients in args.clients:
        each_ms: dict[str, list[float]] = {name: [] for name in servers}
        bodies = [_body(p, args.tokens) for p in prompts[: 2 * num_clients]]
        contestants = {
            name: _texts(server, bodies, num_clients, each_ms[name])
            for name, server in servers.items()
        }
        elapsed_s = alternate(contestants, args.rounds)
        for name, took_s in elapsed_s.items():
            tokens = len(bodies) * args.tokens
            token_ms = [ms / args.tokens for ms in each_ms[name][len(bodies) :]]
            alone_ms.setdefault(name, statistics.median(token_ms))
            alone_s.setdefault(name, [s / tokens for s in took_s])
            rows.append(
                {
                    "retrieval": name,
                    "clients": num_clients,
                    "tokens/s": significant(tokens / statistics.median(took_s)),
                    "by off": ratio(elapsed_s["off"], took_s),
                    f"by {args.clients[0]} client": ratio(
                        alone_s[name], [s / tokens for s in took_s]
                    ),
                    "ms a token, p50": significant(statistics.median(token_ms), 3),
                    "p95": significant(_p95(token_ms), 3),
                    "p95 by p50 alone": significant(_p95(token_ms) / alone_ms[name], 3),
                }
            )
    return rows


def _texts(
    server: Client, bodies: Sequence[dict], num_clients: int, took_ms: list[float]
) -> Callable[[], None]:
    """A round: all texts, by so many clients; adds what each text took."""

    def text(body: dict) -> float:
        start_s = time.perf_counter()
        status, answer, _ = server.ask("POST", "/v1/completions", body)
        if status != 200:
            raise ValueError(f"status {status}: {answer}")
        return 1000 * (time.perf_counter() - start_s)

    def all_texts() -> None:
        with ThreadPoolExecutor(num_clients) as pool:
            took_ms.extend(pool.map(text, bodies))

    return all_texts


def _scores(args, servers: dict[str, Client], prompts) -> list[Row]:
    """Times prompts that are scored as an evaluation asks: echo, no new token."""
    most = servers["on"].ask("GET", "/v1/models")[1]["data"][0]["max_model_len"]
    pieces = [token for prompt in prompts for token in prompt]
    texts = [pieces[i * most : (i + 1) * most] for i in range(8)]
    texts = [text for text in texts if len(text) == most]
    bodies = [_body(text, 0) | {"echo": True, "logprobs": 1} for text in texts]
    contestants = {
        name: _texts(server, bodies, 1, []) for name, server in servers.items()
    }
    elapsed_s = alternate(contestants, args.rounds)
    return [
        {
            "retrieval": name,
            "tokens of a prompt": most,
            "scored tokens/s": significant(
                len(texts) * most / statistics.median(took_s)
            ),
            "by off": ratio(elapsed_s["off"], took_s),
        }
        for name, took_s in elapsed_s.items()
    ]


def _crowd(args, servers: dict[str, Client], prompts) -> list[Row]:
    """Sends one request each from many clients at once; counts what they get."""
    rows: list[Row] = []
    for name, server in servers.items():
        found: Counter[str] = Counter()
        together = threading.Barrier(args.crowd)

        def ask(number: int, server=server, together=together) -> str:
            body = _body(prompts[number % len(prompts)], args.tokens)
            together.wait()
            try:
                status, _, headers = server.ask("POST", "/v1/completions", body)
            except OSError as error:
                return type(error).__name__
            later = status == 429 and "retry-after" in map(str.lower, headers)
            return "429, come again" if later else str(status)

        with ThreadPoolExecutor(args.crowd) as pool:
            found.update(pool.map(ask, range(args.crowd)))
        rows.append(
            {
                "retrieval": name,
                "clients": args.crowd,
                "answered": found.pop("200", 0),
                "told to come again": found.pop("429, come again", 0),
                "anything else": ", ".join(f"{k}: {v}" for k, v in found.items()) or 0,
                "health after": server.ask("GET", "/health")[0],
            }
        )
    return rows


def _posted(path: str, **fields) -> Callable[[Client, dict], int]:
    return lambda server, body: server.ask("POST", path, body | fields)[0]


# What a soak asks for: texts, whole, streamed and left; scores, passages, and what is refused.
_ACTS = (
    _posted("/v1/completions"),
    lambda server, body: server.stream(body)[0],
    Client.leave_early,
    _posted("/v1/completions", max_tokens=0, echo=True, logprobs=1),
    lambda server, body: server.ask("POST", "/v1/search", {"query": "the size"})[0],
    _posted("/v1/completions", n="x"),
)


def _soak(args, servers: dict[str, Client], prompts) -> list[Row]:
    """Asks for everything, in no order, for some minutes; watches the process."""
    server, rng = servers["on"], random.Random(1)
    statuses: list[int] = []  # a list is appended to whole, by whichever thread
    is_over = threading.Event()

    def client() -> None:
        while not is_over.is_set():
            body = _body(rng.choice(prompts), rng.randint(1, args.tokens))
            statuses.append(rng.choice(_ACTS)(server, body))

    samples: list[tuple[float, int, int]] = []
    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client) for _ in range(4)]
        while len(statuses) < _WARM_UP and all(not each.done() for each in clients):
            time.sleep(0.05)
        for _ in range(_SAMPLES):
            is_over.wait(args.soak_s / _SAMPLES)
            samples.append(server.resources())
        is_over.set()
        for each in clients:
            each.result()
    quarter = max(len(samples) // 4, 1)
    counts = sorted(Counter(statuses).items())
    row: Row = {"seconds": args.soak_s, "requests": len(statuses)}
    row["statuses"] = ", ".join(f"{status}: {count}" for status, count in counts)
    for place, name in enumerate(("memory, MB", "open files", "threads")):
        for when, some in (("first", samples[:quarter]), ("last", samples[-quarter:])):
            value = statistics.median(sample[place] for sample in some)
            row[f"{name}, {when} quarter"] = significant(value)
    return [row]
