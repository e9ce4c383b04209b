"""Names of the Hugging Face hub: the folder that one stands for, fetched or kept before.

Only files without code are ever fetched: weights as safetensors, and what tells of them.
"""

import re
from pathlib import Path

_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_FILES = ["*.safetensors", "*.json", "*.model", "tokenizer*", "vocab*", "merges*"]


def is_name(name: str) -> bool:
    """Whether it has the form OWNER/NAME or OWNER/NAME@REVISION."""
    return _NAME.fullmatch(name) is not None


def fetched(name: str) -> Path:
    """The folder of a repository of the hub, fetched unless it is here already.

    Args:
        name: OWNER/NAME[@REVISION].
    Raises:
        ValueError: in one line that begins with the name, with what to do.
    """
    instead = "or give the folder of a copy that is here"
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r}: no name of the hub")
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise ValueError(
            f"{name!r} needs huggingface_hub: pip install huggingface_hub, {instead}"
        ) from error
    try:
        folder = snapshot_download(
            found[1],
            revision=found[2],
            allow_patterns=_FILES,
            ignore_patterns=["*/*"],  # the same weights once more, for other programs
        )
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{name!r}: its owner asks to accept a licence on its page of the hub; do so"
            f" and set HF_TOKEN, {instead}"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ValueError(
            f"{name!r}: no such path, and the hub knows none of that name or revision"
        ) from error
    except errors.HFValidationError as error:
        raise ValueError(f"{name!r}: no name of the hub") from error
    except OSError as error:
        raise ValueError(
            f"{name!r} could not be fetched from the Hugging Face hub: check the network"
            f" and the disk, {instead}"
        ) from error
    return Path(folder)
