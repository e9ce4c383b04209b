"""Checkpoints of a run: parameters, optimizer and the data's position, by Orbax.

A checkpoint is written in the background and appears by one rename, so a run that is
killed while it saves finds the previous one. Beside the arrays lie two JSON items: what the
checkpoint belongs to, and the fingerprint of every array, which is compared on restoring
because Orbax gives an array with a flipped bit back as if nothing were wrong.
"""

import contextlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from retro_jax.runs import fingerprints, quiet_orbax
from retro_jax.runs.metrics import say


class Checkpoints:
    """The numbered checkpoints in one folder; the newest few are kept."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: int | None,
        saved: Callable[[int], None] = lambda step: None,
    ):
        """Opens the folder.

        Args:
            keep: as many of the newest are kept; all if None, as readers do.
            saved: is told of each step in every process, once its checkpoint is whole.
        """
        quiet_orbax.silence()
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
            item_names=("state", "run", "fingerprints"),
        )
        self._saved = saved
        self._under_way: int | None = None
        self._damaged: list[int] = []
        self._has_room = False

    def latest_step(self) -> int | None:
        """The newest step that was saved; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state, run: dict) -> None:
        """Starts to save; `state` may be donated as soon as this returns.

        Args:
            step: how many steps `state` has seen.
            state: a tree of arrays.
            run: what must be equal when the run goes on, as JSON.
        Raises:
            FloatingPointError: naming an array that is not finite; nothing is saved.
            OSError: if this one or the one before could not be saved.
        """
        if not self._has_room:
            self._make_room()
        if step in self._manager.all_steps():
            return
        found, not_finite = fingerprints.examine(state)
        if not_finite:
            raise FloatingPointError(
                f"{not_finite[0]} is not finite after step {step}, so it is not saved; "
                "the newest checkpoint is from before"
            )
        items = {
            "state": ocp.args.StandardSave(state),
            "run": ocp.args.JsonSave(run),
            "fingerprints": ocp.args.JsonSave({"arrays": found, "run": _crc(run)}),
        }
        self.wait()
        with self._explained():
            self._probe()
            self._manager.save(step, args=ocp.args.Composite(**items))
        self._under_way = step

    def _probe(self) -> None:
        """Raises OSError if nothing can be written, which Orbax notices after minutes."""
        if jax.process_index() == 0:
            probe = self._manager.directory / ".write-test"
            probe.write_bytes(bytes(4096))
            probe.unlink()

    def check(self) -> None:
        """Raises OSError if a save that was started has failed; does not wait for one."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits for the save that is under way; raises OSError if it fails."""
        with self._explained():
            self._manager.wait_until_finished()
        step, self._under_way = self._under_way, None
        if step is not None:
            self._saved(step)

    def run_of(self, step: int) -> dict:
        """The run that a checkpoint belongs to, as it was saved beside it.

        Raises:
            ValueError: if that part of it is damaged.
        """
        found, damage = self._attempt(lambda: self._read_run(step))
        if damage is not None:
            raise ValueError(f"{self._manager.directory}/{step} is damaged: {damage}")
        return found[0]

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter of a checkpoint, without reading any."""
        with contextlib.closing(
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        ) as reader:
            saved = reader.metadata(self._manager.directory / str(step) / "state")
        params = saved.item_metadata.tree["params"]
        return {name: tuple(array.shape) for name, array in params.items()}

    def restore(
        self, abstract_state, run: dict, *, step: int | None = None, part: bool = False
    ):
        """The state of a step, onto the shardings of `abstract_state`, bit for bit.

        Without `step` the newest whole one: of each newer one a line says what is damaged.
        They stay where they are until the next `save`, which renames them.

        Args:
            abstract_state: shapes, dtypes and shardings, as of `jax.eval_shape`.
            run: what the checkpoint must say of itself; keys that are not here are
                not compared.
            step: the newest, if not given.
            part: `abstract_state` has some of the arrays only; the others are not read.
                So evaluation needs no room for the optimizer's slots.
        Returns:
            (step, state)
        Raises:
            ValueError: if there is none, none is whole, or it belongs to another run;
                names what differs.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            raise ValueError(f"no checkpoint in {self._manager.directory}: train first")
        found = []
        for candidate in steps if step is None else [step]:
            state, damage = self._read(candidate, abstract_state, run, part)
            if damage is None:
                return candidate, state
            found.append(f"step {candidate}: {damage}")
            self._damaged.append(candidate)
            say(f"the checkpoint of {found[-1]}; it is not used")
        raise ValueError(
            f"no whole checkpoint in {self._manager.directory} ({'; '.join(found)}): put "
            "a copy of one back, or use another --workdir to begin anew"
        )

    def _read(
        self, step: int, abstract_state, run: dict, part: bool
    ) -> tuple[Any, str | None]:
        """Gives (state, None), or (None, what is damaged), the same in every process."""
        found, damage = self._attempt(lambda: self._read_run(step))
        if damage is None:
            saved_run, expected = found
            self._check_run(step, saved_run, run)
            wanted = ocp.args.PyTreeRestore(
                item=abstract_state,
                restore_args=ocp.checkpoint_utils.construct_restore_args(
                    abstract_state
                ),
                partial_restore=part,
            )
            state, damage = self._attempt(
                lambda: self._read_item(step, "state", wanted)
            )
        if damage is not None:
            return None, damage
        restored, _ = fingerprints.examine(state)
        names = restored.keys() if part else restored.keys() | expected.keys()
        for name in sorted(names):
            if restored.get(name) != expected.get(name):
                return None, f"array {name} is not what was saved (its bits differ)"
        return state, None

    def _read_run(self, step: int) -> tuple[dict, dict[str, int]]:
        """The run that the checkpoint belongs to, and its arrays' fingerprints."""
        run = self._read_item(step, "run", ocp.args.JsonRestore())
        saved = self._read_item(step, "fingerprints", ocp.args.JsonRestore())
        if saved["run"] != _crc(run):
            raise ValueError("what it says of its run is not what was saved")
        return run, saved["arrays"]

    def _read_item(self, step: int, name: str, args):
        # Each process reads by itself: if one finds a damaged file, those that do not must
        # not wait for it at a barrier inside of Orbax.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        kind = (
            ocp.PyTreeCheckpointHandler
            if name == "state"
            else ocp.JsonCheckpointHandler
        )
        reader = ocp.Checkpointer(
            kind(multiprocessing_options=alone), multiprocessing_options=alone
        )
        with contextlib.closing(reader):
            return reader.restore(self._manager.directory / str(step) / name, args=args)

    def _attempt(self, read: Callable[[], Any]) -> tuple[Any, str | None]:
        """Gives what was read, or what is damaged: of one kind in every process."""
        value, damage = None, None
        try:
            value = read()
        # All of them: Orbax raises Exception itself for a data file that is missing or cut
        # short, and KeyError, ValueError and OSError for others.
        except Exception as error:  # noqa: BLE001
            damage = _first_cause(error)
        if jax.process_count() > 1:
            whole = multihost_utils.process_allgather(np.array(damage is None))
            if not whole.all() and damage is None:
                damage = f"not readable by process {int(np.argmin(whole))}"
        return value, damage

    def _check_run(self, step: int, saved: dict, run: dict) -> None:
        had, has = _by_dotted_name(saved), _by_dotted_name(run)
        for key, value in has.items():
            if had.get(key) != value:
                raise ValueError(
                    f"checkpoint {self._manager.directory}/{step} was made with "
                    f"{key} = {had.get(key)!r}, this run has {value!r}; use another "
                    "--workdir, or the old settings"
                )

    def _make_room(self) -> None:
        """Removes what killed saves left, and keeps damaged steps aside as `damaged-N`.

        Not by Orbax's own cleaning, which also takes away what another process is saving
        while this one only reads.
        """
        folder = self._manager.directory
        if jax.process_index() == 0:
            for unfinished in folder.glob("*.orbax-checkpoint-tmp"):
                unfinished.rmtree()
            for step in self._damaged:
                aside = folder / f"damaged-{step}"
                if aside.exists():
                    aside.rmtree()
                (folder / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("there is room for checkpoints")
        self._manager.reload()
        self._has_room = True

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Makes one OSError of what goes wrong in saving, now or in the background."""
        try:
            yield
        # Orbax hands on what its writers raise: OSError, and ValueError for a full disk.
        except (OSError, ValueError, RuntimeError) as error:
            whole = self._manager.latest_step()
            raise OSError(
                f"a checkpoint could not be saved in {self._manager.directory}: "
                f"{_first_cause(error)}. "
                + ("None was saved yet" if whole is None else f"Step {whole} is whole")
                + "; mend that and start the same command again"
            ) from error

    def close(self) -> None:
        """Waits for the save that is under way; raises OSError if it fails."""
        try:
            self.wait()
        finally:
            self._manager.close()


def _by_dotted_name(run: dict) -> dict[str, Any]:
    """The settings of all parts by dotted names, as model.depth."""
    flat: dict[str, Any] = {}
    for key, value in run.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": setting for name, setting in value.items()}
        else:
            flat[key] = value
    return flat


def _crc(run: dict) -> int:
    as_read = json.loads(json.dumps(run))
    return zlib.crc32(json.dumps(as_read, sort_keys=True).encode())


def _first_cause(error: BaseException) -> str:
    """The cause of an Orbax error in one short line, with the array if it names one."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    text = re.split(r" \[(?:tensorstore_spec|source locations|os_error_code)", text)[0]
    array = re.search(r'"([^"]+)/[^"/]+" in OCDBT', text)
    named = f"array {array[1]}: " if array else ""
    return named + (text if len(text) <= 200 else "..." + text[-197:])


def abstract(state, shardings):
    """Shapes and dtypes of a state with these shardings."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(
            array.shape, array.dtype, sharding=sharding
        ),
        state,
        shardings,
    )
