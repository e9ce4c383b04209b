"""Answers of a retrieval service whose servers are killed, stalled and overloaded.

Two shards with two replicas each and a router, all real processes of this machine, on a
database of random vectors.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from tools.benchmark import memory
from tools.benchmark.result import Row, progress
from tools.benchmark.synthetic import clustered, write_database
from tools.faults import load

_SHARDS, _REPLICAS = 2, 2
_WIDTH, _BATCH = 384, 64
_OVERLOAD = 5
_LONGEST_RECOVERY_S = 60.0


class Server:
    """A server process, which runs from when it is made."""

    def __init__(
        self, module: str, *flags: str, port: int = 0, embedder: str = "minilm"
    ):
        """Waits until the process serves; RuntimeError with its messages if it ends."""
        toy = ["tools.faults.toy_embedder"] if embedder == "toy" else []
        command = [
            sys.executable,
            "-m",
            *toy,
            f"data_pipeline.service.{module}",
            *flags,
        ]
        self._process = subprocess.Popen(
            [*command, f"--port={port}", "--until_eof"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._process.stderr is not None  # it is a pipe
        lines = []
        for line in self._process.stderr:
            lines.append(line)
            if line.startswith("{") and "port" in json.loads(line):
                self.port: int = json.loads(line)["port"]
                break
        else:
            raise RuntimeError(f"{module} did not start: {''.join(lines)}")
        self._reader = threading.Thread(target=self._process.stderr.read)
        self._reader.start()

    def signal(self, number: signal.Signals) -> None:
        """Sends the process a signal."""
        self._process.send_signal(number)

    def peak_mb(self) -> int:
        """Gives the most memory that it has had, in MB."""
        return memory.process_peak_bytes(self._process.pid) // 10**6

    def wait(self, timeout_s: float) -> None:
        """Waits for its end, or until the time is over."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def end(self) -> None:
        """Kills the process, if it still runs."""
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stderr):
            if pipe is not None:
                pipe.close()


class Service:
    """A router before two shards, of two replicas if nothing else is said."""

    def __init__(
        self,
        database: Path,
        queue: int,
        *,
        replicas: int = _REPLICAS,
        embedder: str = "minilm",
    ):
        """Starts all servers; at a shard server `queue` requests may wait."""
        self._database, self._queue, self._embedder = database, queue, embedder
        self.shards = [
            [self._shard(shard) for _ in range(replicas)] for shard in range(_SHARDS)
        ]
        addresses = ",".join(
            "|".join(f"127.0.0.1:{replica.port}" for replica in shard)
            for shard in self.shards
        )
        flags = (f"--database={database}", f"--shards={addresses}")
        self.router = Server("router", *flags, embedder=embedder)
        self.port = self.router.port

    def _shard(self, shard: int, port: int = 0) -> Server:
        flags = [f"--database={self._database}", f"--queue={self._queue}"]
        flags += [f"--shard={shard}", f"--num_shards={_SHARDS}", "--threads=1"]
        return Server("shard_server", *flags, port=port, embedder=self._embedder)

    def signal(self, shard: int, number: signal.Signals, *, replicas: int) -> None:
        """Sends the first replicas of a shard a signal."""
        for replica in self.shards[shard][:replicas]:
            replica.signal(number)

    def restart(self, shard: int, *, replicas: int) -> None:
        """Starts killed replicas again, at their ports."""
        for number in range(replicas):
            old = self.shards[shard][number]
            old.end()
            self.shards[shard][number] = self._shard(shard, old.port)

    def terminate(self, most_s: float) -> float:
        """Asks all to end, the router first; gives the seconds that they take, at most `most_s`."""
        self.peaks_mb = [server.peak_mb() for server in self._all()]
        began_s = time.monotonic()
        for server in self._all():
            server.signal(signal.SIGTERM)
            server.wait(max(0.0, began_s + most_s - time.monotonic()))
        return time.monotonic() - began_s

    def _all(self) -> list[Server]:
        return [self.router, *(replica for shard in self.shards for replica in shard)]

    def close(self) -> None:
        """Ends all servers."""
        for server in self._all():
            server.end()


def rows(scratch: Path, args: argparse.Namespace, notes: list[str]) -> list[Row]:
    """Gives the rows of all faults of the service."""
    write_database(scratch, args.rows, _WIDTH, _SHARDS, "exact")
    progress(f"starting {_SHARDS * _REPLICAS} shard servers and a router")
    with contextlib.closing(Service(scratch, args.queue)) as service:
        queries_QW = clustered(np.random.default_rng(1), _BATCH, _WIDTH)
        faults = _Faults(service, load.request_of(queries_QW), args)
        return [
            faults.row("a replica killed", replicas=1, killed=True),
            faults.row("a replica stalled", replicas=1, killed=False),
            faults.row("a shard stalled", replicas=_REPLICAS, killed=False),
            faults.row("a shard killed", replicas=_REPLICAS, killed=True),
            faults.overload(),
        ]


class _Faults:
    """Faults of a service under load, with counts of what its clients see."""

    def __init__(self, service: Service, request, args: argparse.Namespace):
        self._service, self._request, self._args = service, request, args

    def row(self, fault: str, *, replicas: int, killed: bool) -> Row:
        """Kills or stalls replicas of shard 0 under load; then all is well again."""
        service = self._service
        progress(f"{fault} under load")
        first = signal.SIGKILL if killed else signal.SIGSTOP
        acts = [lambda: service.signal(0, first, replicas=replicas)]
        seconds = self._args.seconds
        if not killed:  # a third of the time, and longer than the deadline
            acts += [lambda: service.signal(0, signal.SIGCONT, replicas=replicas)]
            seconds = max(seconds, 4 * self._args.timeout_s)
        answers = load.under_load(
            service.port,
            self._request,
            acts,
            clients=self._args.clients,
            timeout_s=self._args.timeout_s,
            seconds=seconds,
        )
        if killed:
            service.restart(0, replicas=replicas)
        self._recovered_s(time.monotonic(), normal_s=self._args.timeout_s)
        return self._counts(fault, answers)

    def _counts(self, fault: str, answers: load.Answers) -> Row:
        return {
            "service": fault,
            "requests": len(answers),
            "whole": answers.num("whole"),
            "partial": answers.num("partial"),
            "failed": answers.errors(),
            "longest ms": answers.longest_ms(),
            "deadline ms": round(1000 * self._args.timeout_s),
        }

    def _recovered_s(self, since_s: float, normal_s: float) -> float:
        """Asks alone until a whole answer comes in normal time; gives the seconds until then."""
        with load.connected(self._service.port) as stub:
            while True:
                answer = load.ask(stub, self._request, self._args.timeout_s)
                if answer.outcome == "whole" and answer.took_s <= normal_s:
                    return answer.ended_s - since_s
                if answer.ended_s - since_s > _LONGEST_RECOVERY_S:
                    raise RuntimeError(f"not answered again in {_LONGEST_RECOVERY_S} s")
                time.sleep(0.01)

    def overload(self) -> Row:
        """Asks five times as often as a closed loop of clients gets answers."""
        args, service = self._args, self._service
        with load.connected(service.port) as stub:
            alone = [load.ask(stub, self._request, 10) for _ in range(20)]
        normal_s = statistics.median(answer.took_s for answer in alone)
        closed = load.under_load(
            service.port,
            self._request,
            (),
            clients=args.clients,
            timeout_s=args.timeout_s,
            seconds=args.seconds,
        )
        sustained = closed.num("whole") / args.seconds
        progress(f"{_OVERLOAD} times {sustained:.0f} requests a second")
        answers = load.open_loop(
            service.port,
            self._request,
            rate=max(1.0, _OVERLOAD * sustained),
            timeout_s=args.timeout_s,
            seconds=args.seconds,
        )
        recovered_s = self._recovered_s(
            max(answer.ended_s for answer in answers), normal_s=2 * normal_s
        )
        shed = answers.num("RESOURCE_EXHAUSTED")
        row = self._counts(f"overload, {_OVERLOAD} times", answers) | {
            "failed": answers.errors() - shed,
            "shed": shed,
        }
        return row | {
            "sustained requests/s": round(sustained, 1),
            "answered requests/s": round(answers.num("whole") / args.seconds, 1),
            "normal again s": round(recovered_s, 3),
            "normal ms": round(1000 * normal_s, 1),
        }
