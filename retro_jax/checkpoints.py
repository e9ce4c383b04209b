"""Checkpoints of a run: parameters, optimizer and the data's position, by Orbax.

A checkpoint is written in the background and appears by one rename, so a run that is
killed while it saves finds the previous one. Beside the arrays lies a JSON item that says
what the checkpoint belongs to.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The numbered checkpoints in one folder; the newest few are kept."""

    def __init__(self, folder: Path, *, keep: int):
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=True
            ),
            item_names=("state", "run"),
        )

    def latest_step(self) -> int | None:
        """The newest step that was saved whole; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state, run: dict) -> None:
        """Starts to save; `state` may be donated as soon as this returns.

        Args:
            step: how many steps `state` has seen.
            state: a tree of arrays.
            run: what must be equal when the run goes on, as JSON.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)
            ),
        )

    def restore(self, abstract_state, run: dict, *, step: int | None = None):
        """The state of a step, onto the shardings of `abstract_state`.

        Args:
            abstract_state: shapes, dtypes and shardings, as of `jax.eval_shape`.
            run: what the checkpoint must say of itself; keys that are not here are
                not compared.
            step: the newest, if not given.
        Returns:
            (step, state)
        Raises:
            ValueError: if there is none, or it belongs to another run; names what differs.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise ValueError(f"no checkpoint in {self._manager.directory}: train first")
        saved = self._manager.restore(
            step, args=ocp.args.Composite(run=ocp.args.JsonRestore())
        ).run
        for key, value in run.items():
            if saved.get(key) != value:
                raise ValueError(
                    f"checkpoint {self._manager.directory}/{step} was made with "
                    f"{key} = {saved.get(key)!r}, this run has {value!r}; use another "
                    "--workdir, or the old settings"
                )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state)),
        )
        return step, restored.state

    def close(self) -> None:
        """Waits for the save that is under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def abstract(state, shardings):
    """Shapes and dtypes of a state with these shardings."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(
            array.shape, array.dtype, sharding=sharding
        ),
        state,
        shardings,
    )
