"""Files that a tokenizer is read from: .model, tokenizer.json, a decoder's folder, GGUF.

Called by `tokenizer.py`. Whatever the file, it becomes the bytes that a database and a run
keep: a SentencePiece model as it is, or one tokenizer.json with what stands beside it (the
names of the end and of the beginning, the chat template).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.storage.files import read_json
from data_pipeline.text.tokenizers import gguf_metadata, pre_tokenizers
from data_pipeline.text.tokenizers.byte_pair_model import DECLARED

_MAX_BYTES = 2**28  # of a tokenizer; the largest that is published has 35 MB
_NAMES = ("bos_token", "eos_token", "pad_token")
_GGUF_IDS = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
_GGUF_NAMES = {
    "tokenizer.chat_template",
    *(f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "token_type")),
    *(f"tokenizer.ggml.{name}_token_id" for name in _GGUF_IDS.values()),
    "tokenizer.ggml.merges",
}
_PLAIN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
_NORMAL, _USER_DEFINED = 1, 4  # token types of GGUF; all but the first are added


def read(path: str | os.PathLike[str]) -> bytes:
    """Reads a tokenizer's bytes, as `Tokenizer` takes them.

    Args:
        path: a SentencePiece `.model`, a `tokenizer.json`, a Hugging Face folder that holds
            one of them, or a `.gguf`.
    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none of them.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / "tokenizer.json", path / "tokenizer.model"]
        path = next((file for file in found if file.is_file()), path)
        if path.is_dir():
            raise ValueError(
                f"{path} holds no tokenizer.json and no tokenizer.model: give the folder of "
                "a decoder with its tokenizer, or the tokenizer's file"
            )
    if path.suffix == ".gguf":
        return _of_gguf(path)
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} is too large for a tokenizer")
    content = path.read_bytes()
    if path.suffix != ".json":
        return content
    description = read_json(path)
    if description is None:
        raise ValueError(f"{path}: not a tokenizer.json")
    beside = _beside(path.parent, description)
    return _written(description | ({DECLARED: beside} if beside else {}))


def _beside(folder: Path, description: Mapping[str, Any]) -> dict[str, str]:
    """What other files of a Hugging Face folder say of its tokenizer."""
    config = read_json(folder / "tokenizer_config.json") or {}
    declared = {name: _content(config.get(name)) for name in _NAMES}
    added = description.get("added_tokens")
    named = {
        entry.get("id"): entry.get("content")
        for entry in (added if isinstance(added, list) else [])
        if isinstance(entry, dict) and type(entry.get("id")) is int
    }
    model = read_json(folder / "config.json") or {}
    for name in _NAMES:
        token = model.get(f"{name}_id")
        token = token[0] if isinstance(token, list) and token else token
        if declared[name] is None and type(token) is int:
            declared[name] = _content(named.get(token))
    template = folder / "chat_template.jinja"
    declared["chat_template"] = (
        template.read_text(errors="replace")
        if template.is_file() and template.stat().st_size <= _MAX_BYTES
        else _template(config.get("chat_template"))
    )
    return {name: text for name, text in declared.items() if text is not None}


def _content(token: object) -> str | None:
    """The name of a token that is given as it is or as an object."""
    name = token.get("content") if isinstance(token, Mapping) else token
    return name if isinstance(name, str) else None


def _template(given: object) -> str | None:
    """The template that is used where several are named."""
    if isinstance(given, list):
        named = {t.get("name"): t.get("template") for t in given if _is_named(t)}
        given = named.get("default")
    return given if isinstance(given, str) else None


def _is_named(template: object) -> bool:
    return isinstance(template, dict) and isinstance(template.get("name"), str)


def _of_gguf(path: Path) -> bytes:
    """The tokenizer.json that a GGUF's metadata make."""
    values = gguf_metadata.read(path, _GGUF_NAMES)
    kind, cut = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise ValueError(
            f"{path}: its tokenizer is of the kind {kind!s:.40}, which only a "
            "tokenizer.json or .model of the same decoder gives without loss: name that"
        )
    if not isinstance(cut, str) or cut not in pre_tokenizers.OF_GGUF:
        raise ValueError(
            f"{path}: its pre-tokenizer {cut!s:.40} is not known here "
            f"({', '.join(pre_tokenizers.OF_GGUF)}): give the decoder's tokenizer.json"
        )
    tokens = _strings(values, "tokens", path)
    types = values.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ValueError(f"{path}: its tokenizer has no type for each token")
    declared: dict[str, Any] = {
        name: tokens[token]
        for name, key in _GGUF_IDS.items()
        if type(token := values.get(f"tokenizer.ggml.{key}_token_id")) is int
        and 0 <= token < len(tokens)
    }
    template = _template(values.get("tokenizer.chat_template"))
    declared |= {} if template is None else {"chat_template": template}
    return _written(
        {
            "added_tokens": [
                _PLAIN
                | {"id": i, "content": token, "special": types[i] != _USER_DEFINED}
                for i, token in enumerate(tokens)
                if types[i] != _NORMAL
            ],
            "pre_tokenizer": pre_tokenizers.OF_GGUF[cut],
            "model": {
                "type": "BPE",
                "vocab": {token: i for i, token in enumerate(tokens)},
                "merges": _strings(values, "merges", path),
                "ignore_merges": cut == "llama-bpe",
            },
            DECLARED: declared,
        }
    )


def _strings(values: Mapping[str, Any], name: str, path: Path) -> list[str]:
    found = values.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{path}: its tokenizer has no {name}")
    return found


def _written(description: Mapping[str, Any]) -> bytes:
    return json.dumps(description).encode()
