"""Serves a database from one machine: shard servers and a router, supervised.

    python -m data_pipeline.service.serve_local --database=DIR --num_shards=4 --port=50050

Each server is a process. One that ends is started again, with pauses that grow while it
lives for less than a minute; the router answers from the others meanwhile. SIGTERM and
Ctrl-C drain the router, then the shards. A second one ends this process at once, which
the servers notice (their standard input ends, which is their SIGTERM) and end too.

The router alone may ask the shard servers: they want a token that is made anew each time and
goes to all through pipes, so that no other user of the machine can read it.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from data_pipeline.database import Database
from data_pipeline.service.server import server
from data_pipeline.storage.printing import protect_streams

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_LONG_LIFE_S = 60.0  # after which a server's end is no sign that the next one ends too
_PACKAGE = "data_pipeline.service"
# A server lets go of Python's lock while it searches, and another one costs a message more
# for each request: with one for two cores 0.95 of the searches in process, with four 0.71.
_CORES_OF_SERVER = 4
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Child:
    """A server process that is started again whenever it ends by itself."""

    def __init__(
        self, module: str, flags: Sequence[str], threads: int, secret: tuple[str, str]
    ):
        """Takes what the process is started with, each time.

        Args:
            flags: without --port, which is the first that the process got.
            secret: a flag that names a file, and what the process finds in it.
        """
        self._module, self._flags, self._threads = module, list(flags), threads
        self._secret_flag, self._secret = secret
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task | None = None
        self.port = 0

    @property
    def pid(self) -> int:
        """The id of the process that runs now; 0 before the first."""
        return self._process.pid if self._process is not None else 0

    async def start(self, port: int = 0) -> int:
        """Starts the process and gives its port, once it serves.

        Raises:
            ValueError: if it ends before that; the reason stands on standard error.
        """
        self.port = port
        process = await self._spawn()
        if process is None:
            raise ValueError(f"{self._module} did not start: see above")
        self._watch = asyncio.create_task(self._supervise(process))
        return self.port

    async def _spawn(self) -> asyncio.subprocess.Process | None:
        """Starts the process and waits until it serves; None if it ended instead."""
        command = [sys.executable, "-m", f"{_PACKAGE}.{self._module}", *self._flags]
        with _pipe_with(self._secret) as pipe:
            self._process = process = await self._start_process(
                *command,
                f"--port={self.port}",
                "--until_eof",  # also if this process is killed
                f"--{self._secret_flag}=/dev/fd/{pipe}",
                pass_fds=(pipe,),
            )
        async for line in _lines(process):
            bound = _port_in(line)
            if bound is not None:
                self.port = bound
                return process
        await process.wait()
        return None

    async def _start_process(
        self, *command: str, pass_fds: tuple[int, ...]
    ) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *command,
            pass_fds=pass_fds,
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {name: str(self._threads) for name in _THREADS},
            # Ctrl-C reaches the supervisor alone, which ends its children in order.
            start_new_session=True,
        )

    async def _supervise(self, process: asyncio.subprocess.Process) -> None:
        clock, pause_s = asyncio.get_running_loop().time, _FIRST_PAUSE_S
        while True:
            start_s = clock()
            await _wait_for_end(process)
            if clock() - start_s > _LONG_LIFE_S:
                pause_s = _FIRST_PAUSE_S
            _forward(
                f"{self._module}: ended; started again in {pause_s:.1f} s\n".encode()
            )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            process = await self._spawn() or process

    async def stop(self) -> None:
        """Asks the process to drain and waits for its end."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])  # it reads what is read below
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        await _wait_for_end(self._process)


@contextlib.contextmanager
def _pipe_with(secret: str) -> Iterator[int]:
    """The reading end of a pipe that holds a secret; it is closed here at the end."""
    reading, writing = os.pipe()
    try:
        os.write(writing, secret.encode())  # far shorter than what a pipe holds
    finally:
        os.close(writing)
    try:
        yield reading
    finally:
        os.close(reading)


async def _lines(process: asyncio.subprocess.Process) -> AsyncIterator[bytes]:
    """Gives the lines of its standard error, after writing them to ours."""
    assert process.stderr is not None  # it is a pipe
    async for line in process.stderr:
        _forward(line)
        yield line


async def _wait_for_end(process: asyncio.subprocess.Process) -> None:
    async for _ in _lines(process):
        pass
    await process.wait()


def _forward(line: bytes) -> None:
    sys.stderr.write(line.decode(errors="replace"))
    sys.stderr.flush()


def _port_in(line: bytes) -> int | None:
    """The port, if the line says that the process serves."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if isinstance(event, dict) and event.get("event") == "serving":
        return event["port"]
    return None


class Local:
    """A router and its shard servers, as processes of this machine."""

    def __init__(self, longest_stop_s: float = 2 * server.Listening().longest_stop_s):
        """Starts nothing yet; the router and then the shards may take so long to end."""
        self.longest_stop_s = longest_stop_s
        self._children: list[Child] = []
        self.shards: list[Child] = []
        self.port = 0

    async def start(
        self,
        database: Path,
        num_shards: int,
        port: int,
        flags: Sequence[str],
        *,
        host: str = "127.0.0.1",
        flags_of_all: Sequence[str] = (),
    ) -> "Local":
        """Starts all, the router when the shards serve; all end if one does not start.

        Args:
            host, port: of the router; port 0 takes a free one.
            flags: more of the router's.
            flags_of_all: the router's and the shards'.
        """
        cores = len(os.sched_getaffinity(0))
        threads, token = max(1, cores // num_shards), secrets.token_hex(32)
        self.shards = [
            Child(
                "shard_server",
                [
                    f"--database={database}",
                    f"--shard={shard}",
                    f"--num_shards={num_shards}",
                    *flags_of_all,
                ],
                threads,
                ("token_file", token),
            )
            for shard in range(num_shards)
        ]
        self._children = list(self.shards)
        try:
            ports = await asyncio.gather(*(child.start() for child in self.shards))
            addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
            router = Child(
                "router",
                [
                    f"--database={database}",
                    f"--shards={addresses}",
                    f"--host={host}",
                    *flags_of_all,
                    *flags,
                ],
                cores,
                ("shards_token_file", token),
            )
            self._children.append(router)
            self.port = await router.start(port)
        except ValueError:
            await self.stop()
            raise
        return self

    def announce(self) -> None:
        """Does nothing: the router has said where it serves."""

    async def stop(self) -> None:
        """Drains the router, then the shards."""
        for child in self._children[len(self.shards) :]:
            await child.stop()
        await asyncio.gather(*(child.stop() for child in self.shards))


def shards_here(database: Path, asked: int) -> int:
    """The number of servers to start: as asked, or one for four cores while there are shards.

    Raises:
        ValueError: if there is no database, or it has fewer shards than asked.
    """
    if asked < 0:
        raise ValueError(f"num_shards must be at least 0, is {asked}")
    available = Database.open(database).snapshot.num_shards
    if asked > available:
        raise ValueError(
            f"num_shards is {asked}, the index of {database} has {available} shards: "
            "serve it with as many or fewer, or build it with a smaller index_shard_rows"
        )
    cores = len(os.sched_getaffinity(0))
    return asked or max(1, min(available, cores // _CORES_OF_SERVER))


def _parser_of_all() -> argparse.ArgumentParser:
    """Reads the flags that the router and the shards are given alike."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    server.add_limit_arguments(parser)
    server.add_follow_argument(parser)
    server.add_stop_arguments(parser)
    return parser


def _parser(of_all: argparse.ArgumentParser) -> argparse.ArgumentParser:
    description = (__doc__ or "").splitlines()[0]
    parser = server.parser_of("serve_local", description, parents=[of_all])
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument(
        "--num_shards", type=int, default=0, help="0: one for four cores"
    )
    server.add_host_argument(parser)
    parser.add_argument("--port", type=server.port, default=50050)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until a signal; flags that it does not know are the router's."""
    of_all = _parser_of_all()
    args, flags = _parser(of_all).parse_known_args(argv)
    given = vars(of_all.parse_known_args(argv)[0])
    end = server.Listening(drain_s=args.drain_s, pause_s=args.pause_s)

    async def start() -> server.Stoppable:
        server.check_port(args.host, args.port)
        count = shards_here(args.database, args.num_shards)
        return await Local(2 * end.longest_stop_s).start(
            args.database,
            count,
            args.port,
            flags,
            host=args.host,
            flags_of_all=[f"--{name}={value}" for name, value in given.items()],
        )

    return server.run(start)


if __name__ == "__main__":
    protect_streams(outlives_readers=True)
    sys.exit(main())
