"""A run's model as a folder that needs nothing else: weights, tokenizer, settings, card."""

import json
import math
from pathlib import Path

import numpy as np

from data_pipeline.database import Database
from data_pipeline.storage.files import read_json
from data_pipeline.storage.progress import say
from data_pipeline.text.tokenizer import Tokenizer
from experiments import workdirs
from experiments.config import Experiment
from experiments.jobs import job, reading
from experiments.report import model_card
from retro_jax import pretrained
from retro_jax.devices import sharding
from retro_jax.pretrained import huggingface_folder

_CARD, _DECODERS_CARD = "README.md", "README.decoder.md"
_OWN_KEY = "retro_jax"  # of a tokenizer's file, which other programs do not know
_BYTES = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": True,
    "use_regex": True,
}


def write(cfg: Experiment, workdir: Path, database: Path, out: str) -> None:
    """Writes the model of a run; the folder appears whole or not at all.

    Args:
        database: the folder of the database that the model belongs to; if there is none
            the folder names none.
    Raises:
        ValueError: if there is no folder to make, or the database is damaged.
        FileExistsError: if the folder is there.
    """
    folder = Path(out)
    if not folder.name:
        raise ValueError("export needs a folder to make: --out=FOLDER (OUT of make)")
    if folder.exists():  # before the model is read, which takes a while
        raise FileExistsError(f"{folder} exists: give a folder that is new")
    tokenizer, params = job.trained_model(cfg, workdir)
    about = {
        "generation": _generation(cfg, reading.limits(cfg, workdir)),
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "end_token": tokenizer.eod_id,
            "begin_token": tokenizer.bos_id,
        },
        "database": _database(database),
    }
    source = Path(cfg.init_from) if cfg.model.encoder == "decoder" else None
    files = {
        _CARD: model_card.text(
            folder.name,
            about,
            read_json(workdir / "evaluation" / "results.json") or {},
            workdirs.kept_settings(workdir),
        ).encode()
    }
    if source is None:
        files |= _own_tokenizer_files(tokenizer)
    elif source.is_file():  # a GGUF has its tokenizer inside
        files |= _tokenizer_files(tokenizer)
    elif (source / _CARD).exists():
        card = huggingface_folder.inside(source, _CARD)
        files[_DECODERS_CARD] = card.read_bytes()
    pretrained.export(
        folder,
        cfg.model,
        {name: np.asarray(sharding.on_host(array)) for name, array in params.items()},
        source=source,
        files=files,
        about=about,
    )
    say(f"the model is in {folder}")


def _generation(cfg: Experiment, limits: reading.Limits) -> dict:
    """How the run generates, which is what `retro_jax.generation` wants to be told."""
    kept = cfg.evaluation
    distance = limits.max_distance
    return {
        "window_chunks": cfg.data.sequence_chunks,
        "num_neighbours": cfg.data.num_neighbours,
        "max_distance": distance if math.isfinite(distance) else None,
        "least_tokens": limits.least_tokens,
        "temperature": kept.temperature,
        "top_p": kept.top_p,
        "top_k": kept.top_k,
        "min_p": kept.min_p,
        "repetition_penalty": kept.repetition_penalty,
        "stop": list(kept.stop),
    }


def _database(folder: Path) -> dict:
    """Which database the model belongs to, as it is now; empty if it is not there."""
    if not (folder / "manifest.json").exists():
        say(f"there is no database in {folder}: the folder will name none")
        return {}
    database = Database.open(folder)
    manifest = database.manifest
    return {
        "fingerprint": database.fingerprint,
        "version": database.version,
        "chunk_len": database.chunk_len,
        "embedder": manifest["embedder"],
        "documents": manifest["documents"]["train"]["documents"],
        "chunks": manifest["chunks"]["train"],
    }


def _own_tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The tokenizer as it is, which `Tokenizer.load` finds in the folder."""
    is_json = tokenizer.model.startswith(b"{")
    return {"tokenizer.json" if is_json else "tokenizer.model": tokenizer.model}


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
