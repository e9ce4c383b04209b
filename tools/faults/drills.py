"""Runs of several processes to which something happens: each recovers, or ends with a line that says why.

Every drill is a training of a tiny model on simulated devices of this machine's processor. A
run that is gone on with, on however many processes, must read the same rows and find the same
losses as the one that nothing happened to.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.launching.local import free_port
from retro_jax.runs.metrics import read_metrics
from tools.benchmark.result import ROOT, Row, progress, significant
from tools.faults import small_database, toy_embedder
from tools.faults.drill_worker import BATCH_SIZE

_LONGEST_S = 600.0  # that any process may take; then the drill has hung
_STEPS = 12
_XLA = (
    "--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)
# The configuration of a run that reads sequences of a database.
_OF_DATABASE = """\
import pathlib

from experiments.configs import tiny
from tools.faults import drill_worker, small_database


def get_config(arg=""):
    cfg = tiny.get_config()
    cfg.data = small_database.config(pathlib.Path({corpus!r}))
    cfg.model = drill_worker.model()
    cfg.train.steps, cfg.train.batch_size = 2, drill_worker.BATCH_SIZE
    return cfg
"""


@dataclasses.dataclass
class _Ended:
    """How a process ended, what it said, and after how long since it was watched."""

    status: int
    errors: str
    seconds: float

    @property
    def line(self) -> str:
        """The line that says why: the first of ours, or else the last of all."""
        lines = [line for line in self.errors.strip().splitlines() if line.strip()]
        ours = [line for line in lines if line.startswith(("error: ", "asked to stop"))]
        return (ours or lines[-1:] or ["nothing"])[0]


class Drills:
    """The drills in one folder, with the run that nothing happened to."""

    def __init__(self, scratch: Path):
        """Trains nothing yet."""
        scratch.mkdir(parents=True, exist_ok=True)
        self._scratch = scratch
        self._undisturbed: Path | None = None

    def run(self, name: str) -> Row:
        """Does one drill; gives its row."""
        progress(f"drill: {name}")
        began_s = time.monotonic()
        outcome, seconds, line = DRILLS[name](self)
        took_s = time.monotonic() - began_s
        return {
            "drill": name,
            "outcome": outcome,
            "ended within s": significant(seconds, 3),
            "line": line.replace(str(self._scratch), "FOLDER")[:300],
            "drill took s": significant(took_s, 3),
        }

    def killed_host(self) -> tuple[str, float, str]:
        """4 x 2 devices, one process killed; gone on with by 2 x 2, killed, and by 1 x 8."""
        folder = self._folder("killed")
        four = self._start(folder, 4, 2, (4, 2))
        _wait_for_step(folder, 5)
        four[3].kill()
        lost = _ended(four[:3])
        _ended(four[3:])
        two = self._start(folder, 2, 2, (4, 1))
        _wait_for_step(folder, 9)
        two[1].kill()
        _ended(two)
        last = _ended(self._start(folder, 1, 8, (8, 1)))
        outcome = self._compared(folder, last)
        slowest = max(lost, key=lambda ended: ended.seconds)
        if any(ended.status == 0 for ended in lost):
            outcome = "wrong: a process did not notice"
        return outcome, slowest.seconds, lost[0].line

    def stalled_host(self) -> tuple[str, float, str]:
        """One of two processes stands still; the other ends, and the run is gone on with."""
        folder = self._folder("stalled")
        pair = self._start(folder, 2, 4, (8, 1), heartbeat_s=5)
        _wait_for_step(folder, 5)
        pair[1].send_signal(signal.SIGSTOP)
        try:
            (other,) = _ended(pair[:1])
        finally:
            pair[1].kill()
            pair[1].communicate()
        last = _ended(self._start(folder, 1, 8, (8, 1)))
        return self._compared(folder, last), other.seconds, other.line

    def slow_host(self) -> tuple[str, float, str]:
        """One of two processes takes a second a step: the other waits for it."""
        folder = self._folder("slow")
        ended = _ended(self._start(folder, 2, 4, (8, 1), of_last={"step_s": 1.0}))
        return self._compared(folder, ended), ended[0].seconds, ended[0].line

    def clock_skew(self) -> tuple[str, float, str]:
        """The clock of one of two processes is two hours ahead."""
        folder = self._folder("skew")
        ended = _ended(self._start(folder, 2, 4, (8, 1), of_last={"skew_s": 7200.0}))
        return self._compared(folder, ended), ended[0].seconds, ended[0].line

    def wrong_device_count(self) -> tuple[str, float, str]:
        """A mesh of eight devices where there are four."""
        (ended,) = _ended(self._start(self._folder("devices"), 1, 4, (8, 1)))
        return _named(ended, "mesh"), ended.seconds, ended.line

    def full_disk(self) -> tuple[str, float, str]:
        """No file may grow beyond 2 kB; then it may, and the same command goes on."""
        folder = self._folder("full")
        limited = self._start(folder, 1, 8, (8, 1), most_file_bytes=2000)
        (ended,) = _ended(limited)
        if (outcome := _named(ended, "error: ")) == "named error":
            outcome = self._compared(folder, _ended(self._start(folder, 1, 8, (8, 1))))
        return outcome, ended.seconds, ended.line

    def missing_shard(self) -> tuple[str, float, str]:
        """A file of training sequences is gone; once it is back the same command goes on."""
        folder = self._folder("shard")
        corpus = small_database.write_corpus(folder / "corpus", seed=0)
        with toy_embedder.in_place_of_all():
            small_database.make(corpus, folder / "database")
        config = folder / "drill.py"
        config.write_text(_OF_DATABASE.format(corpus=str(corpus)))
        words = [
            *("tools.faults.toy_embedder", "experiments.main", "--job=train"),
            f"--config={config}",
            f"--workdir={folder / 'run'}",
            f"--database={folder / 'database'}",
        ]
        shard = next((folder / "database" / "dataset").rglob("retro-train.tfrecord-*"))
        away = shard.rename(folder / shard.name)
        (ended,) = _ended([_process(words, _environment(1))])
        away.rename(shard)
        if (outcome := _named(ended, shard.name)) != "named error":
            return outcome, ended.seconds, ended.line
        (last,) = _ended([_process(words, _environment(1))])
        if last.status:
            outcome = f"wrong: status {last.status} once it was back, {last.line}"
        return outcome, ended.seconds, ended.line

    def refused_store(self) -> tuple[str, float, str]:
        """A store at an address where nobody answers."""
        environment = _environment(1) | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        words = [
            "experiments.copy_stored",
            str(Path(__file__).parent),
            "s3://bucket/run",
        ]
        (ended,) = _ended([_process(words, environment)])
        return _named(ended, "s3://bucket/run"), ended.seconds, ended.line

    def asked_to_stop(self, number: int) -> tuple[str, float, str]:
        """A signal of preemption: the checkpoint is there in time, and the run goes on."""
        folder = self._folder(signal.Signals(number).name)
        pair = self._start(folder, 2, 4, (8, 1), of_last={"step_s": 0.2})
        _wait_for_step(folder, 5)
        pair[1].send_signal(number)
        ended = _ended(pair)
        slowest = max(one.seconds for one in ended)
        if {one.status for one in ended} != {os.EX_TEMPFAIL}:
            return f"wrong: status {ended[0].status}", slowest, ended[0].line
        last = _ended(self._start(folder, 1, 8, (8, 1)))
        return self._compared(folder, last), slowest, ended[0].line

    def _folder(self, name: str) -> Path:
        folder = self._scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _start(
        self,
        folder: Path,
        count: int,
        devices: int,
        mesh: tuple[int, int],
        of_last: Mapping = {},
        **of_all,
    ) -> list[subprocess.Popen]:
        address = f"localhost:{free_port()}"
        common = {"folder": str(folder), "count": count, "address": address}
        common |= {"mesh": mesh, "steps": _STEPS, **of_all}
        tasks = [common | {"number": number} for number in range(count)]
        tasks[-1] |= of_last
        environment = _environment(devices)
        if "most_file_bytes" not in of_all:  # else the cache would fail first
            environment |= {
                "JAX_COMPILATION_CACHE_DIR": str(self._scratch / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
        words = ["tools.faults.drill_worker"]
        return [_process([*words, json.dumps(task)], environment) for task in tasks]

    def _compared(self, folder: Path, last: Sequence[_Ended]) -> str:
        """Whether the run came to its end as the undisturbed one did."""
        for ended in last:
            if ended.status:
                return f"wrong: status {ended.status}, {ended.line}"
        if self._undisturbed is None:
            whole = self._folder("undisturbed")
            (alone,) = _ended(self._start(whole, 1, 8, (8, 1)))
            if alone.status:
                raise RuntimeError(f"the undisturbed run failed: {alone.errors}")
            self._undisturbed = whole
        if _order(folder) != _order(self._undisturbed):
            return "wrong: other rows were read"
        wanted, got = _losses(self._undisturbed), _losses(folder)
        if wanted.keys() != got.keys():
            return "wrong: other steps were taken"
        differs = max(abs(got[step] / wanted[step] - 1) for step in wanted)
        if differs > 1e-5:
            return f"wrong: losses differ by {differs:.1e}"
        return f"recovered: same rows, losses within {differs:.0e}"


# What can be drilled, by the name of its row.
DRILLS: dict[str, Callable[[Drills], tuple[str, float, str]]] = {
    "killed host, 4 x 2 then 2 x 2 then 1 x 8": Drills.killed_host,
    "stalled host": Drills.stalled_host,
    "slow host": Drills.slow_host,
    "clock skew": Drills.clock_skew,
    "wrong device count": Drills.wrong_device_count,
    "full disk": Drills.full_disk,
    "missing shard": Drills.missing_shard,
    "refused store": Drills.refused_store,
    "SIGTERM": lambda drills: drills.asked_to_stop(signal.SIGTERM),
    "SIGUSR2": lambda drills: drills.asked_to_stop(signal.SIGUSR2),
}


def rows(scratch: Path, args: argparse.Namespace, notes: list[str]) -> list[Row]:
    """Gives a row for each drill that is asked for; notes those that went wrong."""
    drills = Drills(scratch)
    asked = [name for name in DRILLS if name.startswith(tuple(args.drills.split(",")))]
    if not asked:
        raise ValueError(f"no drill {args.drills!r}; there are {', '.join(DRILLS)}")
    made = [drills.run(name) for name in asked]
    notes += [
        f"{row['drill']}: {row['outcome']}"
        for row in made
        if str(row["outcome"]).startswith("wrong")
    ]
    return made


def _named(ended: _Ended, says: str) -> str:
    """Whether a process ended with one line that names the mistake."""
    is_line = ended.line.startswith("error: ") and says in ended.line
    lines = ended.errors.strip().splitlines()
    if ended.status == 2 and is_line and len(lines) == 1:
        return "named error"
    return f"wrong: status {ended.status}, {len(lines)} lines"


def _losses(folder: Path) -> dict[int, float]:
    found = read_metrics(folder / "metrics" / "metrics.jsonl")
    return {row["step"]: row["loss_nats_per_token"] for row in found}


def _order(folder: Path) -> dict[int, dict[str, str]]:
    """The rows of each step as all processes together have read them, each with a checksum.

    Raises:
        ValueError: if a row was not the same each time, or none has read it.
    """
    found: dict[int, dict[str, str]] = {}
    for path in folder.glob("order-*.jsonl"):
        for line in path.read_text().splitlines():
            noted = json.loads(line)
            known = found.setdefault(noted["step"], {})
            for row, checksum in noted["rows"].items():
                if known.setdefault(row, checksum) != checksum:
                    raise ValueError(f"row {row} of step {noted['step']} was another")
    for step, read in found.items():
        if len(read) != BATCH_SIZE:
            raise ValueError(f"of step {step} {len(read)} rows were read")
    return {step: found[step] for step in sorted(found)[:_STEPS]}


def _wait_for_step(folder: Path, step: int) -> None:
    """Returns once a run has written the losses of a step."""
    until_s = time.monotonic() + _LONGEST_S
    while time.monotonic() < until_s:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            if step <= max(_losses(folder), default=0):
                return
        time.sleep(0.1)
    raise TimeoutError(f"{folder} has not come to step {step}")


def _ended(started: Sequence[subprocess.Popen]) -> list[_Ended]:
    """How each ended; all are killed if one does not end in time."""
    began_s = time.monotonic()
    try:
        made = []
        for process in started:
            left_s = max(_LONGEST_S - (time.monotonic() - began_s), 1)
            errors = process.communicate(timeout=left_s)[1]
            seconds = time.monotonic() - began_s
            made.append(_Ended(process.returncode, errors, seconds))
        return made
    finally:
        for process in started:
            process.kill()
            process.wait()


def _process(words: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=dict(environment),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _environment(devices: int) -> dict[str, str]:
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": _XLA.format(devices=devices),
        "PYTHONPATH": str(ROOT),
    }
