"""Makes shards on a Ray cluster; whoever does not ask for it needs no Ray.

A shard is one task: sent by name, done wherever there is room, done again elsewhere if its
worker or node is lost. Files go to the database's folder, which all nodes must share (NFS,
a mounted bucket); only what the work reports comes back. Embedder, tokenizer and index stay
loaded in a worker process from task to task (`shard_work.py`).
"""

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data_pipeline.build.engine import Report, Resource, Work, make_shard

_ATTEMPTS = 5  # at a shard whose worker is lost each time: it must be the shard's fault
_IN_FLIGHT = 1000  # tasks handed to Ray at once, at most
_VISIBLE_S = 60.0  # network file systems remember for a while that a file is not there
_CANCEL_S = 30.0
_CONNECT_S = 10.0
_PROBE_S = 120.0  # a node that does not answer by then is left out


class RayEngine:
    """A cluster; satisfies `Engine`."""

    def __init__(self, address: str, folder: Path, *, workers: int = 0):
        """Joins a cluster, or starts one of this machine alone.

        Args:
            address: of a running cluster ("auto": the one of this machine); '' starts one.
            folder: of the database, which is there.
            workers: shards made at once, at most; 0 = as many as there is room for.
        Raises:
            ValueError: if workers is negative, there is no such cluster, it has no CPU or
                a node of it can't read and write the folder.
        """
        if workers < 0:
            raise ValueError(f"workers must not be negative, is {workers}")
        self._in_flight = workers or _IN_FLIGHT
        if not ray.is_initialized():
            _connect(address)
        _check_all_see(folder)

    def run(
        self,
        work: Work,
        folder: Path,
        shards: Sequence[str],
        resource: Resource,
        on_report: Callable[[Report], None],
    ) -> None:
        """Makes the shards, as `Engine.run` says.

        Raises:
            ValueError: if the workers of a shard are lost again and again, or what they
                wrote is not to be seen here.
        """
        task = _remote(resource)
        waiting = list(reversed(shards))
        running: dict[ray.ObjectRef, str] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._in_flight:
                    shard = waiting.pop()
                    running[task.remote(work, folder, shard)] = shard
                for done in ray.wait(list(running))[0]:
                    for report in _result(done, folder / running.pop(done)):
                        on_report(report)
        finally:
            _end(list(running))
        _await_shards(folder, shards)


def _connect(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal():  # Ray itself takes minutes to see that nobody is there
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address or 'this machine'!r} ({error}): start "
            "one with `ray start --head`, or leave --ray_address out"
        ) from error


def _remote(resource: Resource):
    """The task, with what it needs of a node.

    What keeps all cores busy asks for those of the smallest node: one such task a node.
    """
    nodes = [node["Resources"] for node in _living()]
    cores = [node["CPU"] for node in nodes if node.get("CPU")]
    if not cores:
        raise ValueError("the Ray cluster has no CPU: `ray start --num-cpus=...`")
    num_cpus, num_gpus = 1 if resource == "core" else min(cores), 0
    platform = "cpu"  # an accelerator that was not asked for may be another task's
    if resource == "accelerator" and any(node.get("GPU") for node in nodes):
        num_cpus, num_gpus, platform = 1, 1, ""
    return ray.remote(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        max_retries=_ATTEMPTS - 1,
        max_calls=0,  # or a worker with a GPU would load the embedder for every shard
        runtime_env={"env_vars": {"JAX_PLATFORMS": platform}},
    )(_make)


def _make(work: Work, folder: Path, shard: str) -> list[Report]:
    return list(make_shard(work, folder, shard))


def _result(done: ray.ObjectRef, shard: Path) -> list[Report]:
    """Gives what a task reported; raises what it raised, as if it had done so here."""
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"{shard} was given up after {_ATTEMPTS} attempts, its worker was lost each "
            f"time (out of memory? see Ray's logs): {str(error).splitlines()[0]}"
        ) from error


def _end(running: list[ray.ObjectRef]) -> None:
    """Ends tasks that are for nothing, as one failed; nobody writes when this returns."""
    for left in running:
        ray.cancel(left, force=True)
    if running:
        ray.wait(running, num_returns=len(running), timeout=_CANCEL_S)


def _await_shards(folder: Path, shards: Sequence[str]) -> None:
    """Waits until this machine sees what others renamed."""
    deadline_s = time.monotonic() + _VISIBLE_S
    while missing := sorted(set(shards) - set(os.listdir(folder))):
        if time.monotonic() > deadline_s:
            raise ValueError(
                f"{folder / missing[0]} was made by another node and is not to be seen "
                "on this one: the nodes must share the folder"
            )
        time.sleep(0.1)


def _living() -> list[dict]:
    return [node for node in ray.nodes() if node["Alive"]]


def _check_all_see(folder: Path) -> None:
    """Raises ValueError naming a node that can't read and write the folder."""
    probe = folder / f".probe-{uuid.uuid4().hex}"
    probe.touch()
    task = ray.remote(num_cpus=0, max_retries=1)(_complaint)
    try:
        asked = {
            node["NodeManagerAddress"]: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(
                    node["NodeID"], soft=False
                )
            ).remote(probe)
            for node in _living()
        }
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=_PROBE_S)
        for address, answer in asked.items():
            try:
                complaint = ray.get(answer, timeout=0)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError:  # the node has gone or is too slow
                continue
            if complaint:
                raise ValueError(
                    f"node {address} {complaint}: a build on Ray needs a folder that all "
                    "nodes share, at the same path"
                )
    finally:
        probe.unlink()


def _complaint(probe: Path) -> str:
    """What is wrong with the folder of `probe` on this node; '' if nothing is."""
    own = probe.with_name(f"{probe.name}-{uuid.uuid4().hex}")
    try:
        if probe.name not in os.listdir(probe.parent):
            return f"has another {probe.parent} than the one that the build writes to"
        own.touch()
        own.unlink()
    except OSError as error:
        return f"can't use {probe.parent} ({error.strerror})"
    return ""
