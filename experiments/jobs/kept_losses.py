"""What an evaluation has measured so far, so that one that is stopped goes on.

A file for each condition lies beside the results until these are written. It counts for the
same model, text, database and settings alone.
"""

import dataclasses
import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipeline.storage.files import write_file
from retro_jax.devices import processes
from retro_jax.evaluation import ChunkLosses

_FINGERPRINT = "fingerprint"


class KeptLosses:
    """Losses of chunks by condition, in a folder."""

    def __init__(self, folder: Path, fingerprint: str):
        """Nothing is read or written yet.

        Args:
            fingerprint: of all that losses depend on; others' are not used.
        """
        self._folder, self._fingerprint = folder, fingerprint

    def get(self, name: str) -> ChunkLosses | None:
        """What was lost in a condition; None if it is not known, or what is there is damaged.

        Several processes measure together, and none goes on by itself.
        """
        if jax.process_count() > 1:
            return None
        try:
            with np.load(self._folder / f"{name}.npz", allow_pickle=False) as found:
                if str(found[_FINGERPRINT]) != self._fingerprint:
                    return None
                fields = dataclasses.fields(ChunkLosses)
                return ChunkLosses(
                    **{field.name: found[field.name] for field in fields}
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def put(self, name: str, losses: ChunkLosses) -> None:
        """Keeps what was lost in a condition."""
        if not processes.is_first():
            return
        arrays: dict[str, Any] = {_FINGERPRINT: np.array(self._fingerprint)}
        for field in dataclasses.fields(losses):
            arrays[field.name] = getattr(losses, field.name)
        whole = io.BytesIO()
        np.savez(whole, **arrays)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_file(self._folder / f"{name}.npz", whole.getvalue())

    def clear(self) -> None:
        """Lets all go, once the results are written."""
        if processes.is_first():
            shutil.rmtree(self._folder, ignore_errors=True)
