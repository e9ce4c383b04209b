"""A run that is kept in an object store, too: each checkpoint, and at last its results.

Below the address of `--store` lie `step-00001000`, ... of the newest checkpoints, each with what
its run needs to go on, and `results`. All are whole or not there (`object_store`). The first
process alone reads and writes them, as it does in the workdir.
"""

import contextlib
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipeline.storage import locks
from data_pipeline.storage.files import (
    link,
    new_folder,
    remove_temporaries,
    write_file,
)
from data_pipeline.storage.object_store import ObjectStore, StoreError, files_below
from data_pipeline.storage.progress import say
from retro_jax.devices import processes
from retro_jax.runs.preemption import Preempted

RESULTS = "results"
_STEP = re.compile(r"step-(\d{8,})")
# What a run needs besides its checkpoints to go on as the same.
_BESIDES = ("run.json", "settings.json", "tokenizer.model", "metrics")
_RESULTS = ("settings.json", "metrics", "evaluation", "report*", "report_files")


class StoredRun:
    """The copy of a workdir in a store; every method does nothing but in the first process."""

    def __init__(self, store: ObjectStore, workdir: Path, *, keep: int):
        """`keep` of the newest checkpoints stay in the store."""
        self._store, self._workdir, self._keep = store, workdir, keep
        self._sending: threading.Thread | None = None
        self._stored = 0
        self._error: StoreError | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Fetches the newest checkpoint if the workdir has an older one, and stores what is made.

        Of a newer one that is damaged a line is printed, and the one before is taken. Nobody
        else may do the same in this workdir meanwhile.

        Raises:
            StoreError: if the store can't be written and read, or has not got the last
                checkpoint when the block ends.
            ValueError: if it holds checkpoints and none is right.
        """
        if not processes.is_first():
            processes.wait_for_all("the run is fetched from its store")
            yield
            return
        with locks.locked(self._workdir / ".storing", "storing"):
            self._store.check()
            remove_temporaries(self._workdir)
            self._fetch()
            processes.wait_for_all("the run is fetched from its store")
            try:
                yield
            except Preempted:
                try:
                    self._finish()
                except StoreError as error:  # what matters more is that it goes on
                    say(str(error))
                raise
            self._finish()

    def _fetch(self) -> None:
        here, damaged = max(self._local_steps(), default=0), []
        steps = self._steps()
        for step in reversed(steps):
            if step <= here:
                break
            try:
                self._take(step)
            except ValueError as error:
                say(f"the stored step {step} is not used: {error}")
                damaged.append(step)
                continue
            say(f"step {step} is fetched from {self._store.url}")
            here = step
            break
        if damaged and not here:
            raise ValueError(
                f"{self._store.url} holds no checkpoint that is whole: store one again, or "
                "give another --store"
            )
        self._stored = here if here in steps and here not in damaged else 0

    def _take(self, step: int) -> None:
        """Puts a stored step's files in their places: the checkpoint's last."""
        fetched = self._workdir / ".tmp-fetched"
        if fetched.exists():
            shutil.rmtree(fetched)
        self._store.get(_name(step), fetched)
        for name in _BESIDES:
            source, target = fetched / name, self._workdir / name
            if source.is_dir():
                shutil.rmtree(target, ignore_errors=True)
            if source.exists():
                source.rename(target)
        checkpoints = self._workdir / "checkpoints"
        checkpoints.mkdir(exist_ok=True)
        (fetched / "checkpoints" / str(step)).rename(checkpoints / str(step))
        shutil.rmtree(fetched)

    def save(self, step: int) -> None:
        """Starts to store a checkpoint that is whole here; waits for the one before it.

        If the store does not take it, a line says so, and the next one is tried.
        """
        if not processes.is_first():
            return
        self._wait()
        if self._error is not None:
            say(f"{self._error}; training goes on, and the next checkpoint is stored")
        self._error = None
        # Under names of its own: training goes on, and removes old checkpoints.
        sent = self._workdir / f".tmp-storing-{step}"
        shutil.rmtree(sent, ignore_errors=True)
        with new_folder(sent) as folder:
            self._copy(step, folder)
        self._sending = threading.Thread(
            target=self._send, args=(step, sent), daemon=True
        )
        self._sending.start()

    def _copy(self, step: int, folder: Path) -> None:
        """Links to the checkpoint's files, and copies of those that grow."""
        checkpoint = self._workdir / "checkpoints" / str(step)
        for path in filter(Path.is_file, checkpoint.rglob("*")):
            target = folder / path.relative_to(self._workdir)
            target.parent.mkdir(parents=True, exist_ok=True)
            link(path, target)
        for name, path in self._files(_BESIDES).items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_file(target, path.read_bytes())

    def _send(self, step: int, folder: Path) -> None:
        try:
            files = {
                path.relative_to(folder).as_posix(): path
                for path in folder.rglob("*")
                if path.is_file()
            }
            self._store.put(_name(step), files)
            self._stored = step
            for old in self._steps()[: -self._keep]:
                self._store.remove(_name(old))
        except StoreError as error:
            self._error = error
        except OSError as error:  # of this machine's disk
            self._error = StoreError(f"step {step} is not stored: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _finish(self) -> None:
        """Waits until the newest checkpoint of the workdir is stored; tries once more."""
        self._wait()
        newest = max(self._local_steps(), default=0)
        if newest > self._stored:
            self.save(newest)
            self._wait()
        if self._error is not None:
            raise StoreError(
                f"{self._error}; step {newest} is whole in {self._workdir}: start the "
                "same command again, which stores it"
            )

    def save_results(self) -> None:
        """Stores the report and what it was made from.

        Raises:
            StoreError: if the store can't be written.
        """
        if processes.is_first():
            self._store.put(RESULTS, self._files(_RESULTS))

    def _files(self, patterns: Iterable[str]) -> dict[str, Path]:
        """Files of the workdir by name, and all that lies in folders of the names."""
        found = {}
        for pattern in patterns:
            for path in self._workdir.glob(pattern):
                if path.is_file():
                    found[path.name] = path
                for name, inner in files_below(path).items():
                    found[f"{path.name}/{name}"] = inner
        return found

    def _wait(self) -> None:
        if self._sending is not None:
            self._sending.join()
            self._sending = None

    def _local_steps(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            names = [path.name for path in (self._workdir / "checkpoints").iterdir()]
            return [int(name) for name in names if name.isdecimal()]
        return []

    def _steps(self) -> list[int]:
        """The steps that were stored whole, the newest last."""
        found = map(_STEP.fullmatch, self._store.whole())
        return sorted(int(step[1]) for step in found if step)


def _name(step: int) -> str:
    return f"step-{step:08d}"
