"""Work that other processes are sent, to make shards."""

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Write:
    """Writes a file for each shard."""

    text: str

    def __call__(self, shard: str, made: Path) -> Iterator[int | str]:
        (made / "one.txt").write_text(self.text + shard)
        yield f"made {shard}"
        yield 1


@dataclasses.dataclass(frozen=True)
class KilledAlways:
    def __call__(self, shard: str, made: Path) -> Iterator[int | str]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield 1


@dataclasses.dataclass(frozen=True)
class Refuse:
    """As the work of a stage whose data is wrong."""

    bad: str

    def __call__(self, shard: str, made: Path) -> Iterator[int | str]:
        if shard == self.bad:
            raise ValueError(f"shard {shard} is wrong: write it again")
        (made / "one.txt").write_text(shard)
        yield 1


@dataclasses.dataclass(frozen=True)
class KilledAfter:
    """Its process is killed in any shard but the first, which makes what `Write` would."""

    first: str

    def __call__(self, shard: str, made: Path) -> Iterator[int | str]:
        if shard != self.first:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from Write("text")(shard, made)


@dataclasses.dataclass(frozen=True)
class Slow:
    """Says that it has begun and never ends."""

    marks: Path

    def __call__(self, shard: str, made: Path) -> Iterator[int | str]:
        if shard == "00":
            yield 1
            return
        (made / "half").write_text("half")
        (self.marks / str(os.getpid())).touch()
        time.sleep(600)


class CustomError(ValueError):
    """Can't be sent: it wants two arguments and keeps one."""

    def __init__(self, shard: str, why: str):
        super().__init__(f"{shard}: {why}")


@dataclasses.dataclass(frozen=True)
class RaiseCustomError:
    def __call__(self, shard: str, made: Path) -> Iterator[int | str]:
        if shard == "05":
            raise CustomError(shard, "as it is")
        yield 1


@dataclasses.dataclass(frozen=True)
class RaiseKeyError:
    def __call__(self, shard: str, made: Path) -> Iterator[int | str]:
        if shard == "05":
            raise KeyError(shard)
        yield 1
