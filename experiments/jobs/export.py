"""A retrofit as a folder that other programs read: its decoder, its tokenizer and its CCA."""

import json
from pathlib import Path

import numpy as np

from data_pipeline.storage.files import read_json
from data_pipeline.storage.progress import say
from data_pipeline.text.tokenizer import Tokenizer
from experiments.config import Experiment
from experiments.jobs import job, reading
from retro_jax import pretrained
from retro_jax.devices import sharding

_OWN_KEY = "retro_jax"  # of a tokenizer's file, which other programs do not know
_BYTES = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": True,
    "use_regex": True,
}


def write(cfg: Experiment, workdir: Path, out: str) -> None:
    """Writes the model of a run; the folder appears whole or not at all.

    Raises:
        ValueError: for a model that was not made of a pretrained decoder.
        FileExistsError: if the folder is there.
    """
    folder = Path(out)
    if not folder.name:
        raise ValueError("export needs a folder to make: --out=FOLDER")
    if cfg.model.encoder != "decoder":
        raise ValueError(
            f"{workdir} holds a model from scratch: export writes the retrofit of a "
            "pretrained decoder, which other programs can read"
        )
    tokenizer, params = job.trained_model(cfg, workdir)
    files = {"reading.json": _json(read_json(workdir / reading.FILE) or {})}
    source = Path(cfg.init_from)
    if source.is_file():  # a GGUF has its tokenizer inside
        files |= _tokenizer_files(tokenizer)
    pretrained.export(
        folder,
        cfg.model,
        {name: np.asarray(sharding.on_host(array)) for name, array in params.items()},
        source=source,
        files=files,
    )
    say(f"the model is in {folder}")


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The tokenizer as the library `tokenizers` reads it."""
    known = json.loads(tokenizer.model)
    known.pop(_OWN_KEY, None)
    # A GGUF does not say how bytes become text again, for its tokens are always bytes.
    known.setdefault("decoder", _BYTES)
    names = {number: name for name, number in tokenizer.special_ids.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": names.get(tokenizer.eod_id),
        "bos_token": None if tokenizer.bos_id is None else names.get(tokenizer.bos_id),
        "chat_template": tokenizer.chat_template,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    return {
        "tokenizer.json": json.dumps(known, ensure_ascii=False).encode(),
        "tokenizer_config.json": _json(given),
    }


def _json(value: dict) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
