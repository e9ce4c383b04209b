"""The parameters of a finished checkpoint, for whoever does not go on with its training.

Evaluation, generation and retrofitting need no optimizer, whose slots take up to twice the
space, nor know which parameters have any. Nothing is changed in the folder, so a run may be
writing to it.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from retro_jax import fingerprints


class SavedParameters:
    """One checkpoint of a run: what it says of itself, and its parameters."""

    def __init__(self, folder: Path, step: int | None = None):
        """Opens the checkpoint of a step; the newest, if it is not given.

        Raises:
            ValueError: if there is none.
        """
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(create=False),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "run": ocp.JsonCheckpointHandler(),
                "fingerprints": ocp.JsonCheckpointHandler(),
            },
        )
        step = self._manager.latest_step() if step is None else step
        if step is None:
            raise ValueError(f"no checkpoint in {folder}: train first")
        self.step: int = step
        self.run: dict = self._manager.restore(
            step, args=ocp.args.Composite(run=ocp.args.JsonRestore())
        ).run

    def check_same_run(self, run: dict) -> None:
        """Raises ValueError naming the first key of `run` that the checkpoint has other."""
        for key, value in run.items():
            if self.run.get(key) != value:
                raise ValueError(
                    f"checkpoint {self._manager.directory}/{self.step} was made with "
                    f"{key} = {self.run.get(key)!r}, this run has {value!r}; use another "
                    "--workdir, or the old settings"
                )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, from the checkpoint's metadata."""
        metadata = self._manager.item_metadata(self.step)["state"]
        params = metadata.tree["params"]
        return {name: tuple(array.shape) for name, array in params.items()}

    def parameters(self, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict:
        """These parameters, onto their shardings; the shapes must be `shapes()`.

        Raises:
            ValueError: naming an array that is not, bit for bit, what was saved.
        """
        item = {"params": wanted}
        arguments = ocp.args.PyTreeRestore(
            item=item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        restored = self._manager.restore(
            self.step,
            args=ocp.args.Composite(
                state=arguments, fingerprints=ocp.args.JsonRestore()
            ),
        )
        found, _ = fingerprints.examine({"params": restored.state["params"]})
        saved = restored.fingerprints["arrays"]
        for name, fingerprint in found.items():
            if saved.get(name) != fingerprint:
                raise ValueError(
                    f"checkpoint {self._manager.directory}/{self.step} is damaged: array "
                    f"{name} is not what was saved. Put a copy of it back, or delete "
                    "that folder to use the one before"
                )
        return restored.state["params"]

    def close(self) -> None:
        self._manager.close()
