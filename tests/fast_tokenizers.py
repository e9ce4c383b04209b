"""Small fast tokenizers as pretrained decoders have them, and GGUF files of them."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from data_pipeline.text.tokenizers.byte_pair_model import byte_letters

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|a|>", "<|b|>")
TEXT = [
    f"The capital of number {i} isn't it: caf\u00e9 {i * i},\n\n  def f_{i}(x):\n\treturn x\r\n"
    for i in range(60)
]
_PLAIN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"


def byte_level(without: bytes = b"", **changes: Any) -> dict[str, Any]:
    """A tokenizer.json of GPT-2's kind; `without` are bytes that have no token."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = byte_letters()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIALS),
        initial_alphabet=[c for c, byte in letters.items() if byte not in without],
        show_progress=False,
    )
    made.train_from_iterator(TEXT, trainer)
    return json.loads(made.to_str()) | changes


def byte_fallback(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json of Llama 2's kind."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("\u2581", "the"),
        ("\u2581", "\u2581"),
        ("i", "s"),
    ]
    pieces += ["\u2581", *"thexis0<4>1", "\u00e9", *(a + b for a, b in merges)]
    return {
        "version": "1.0",
        "truncation": {
            "max_length": 3,
            "strategy": "LongestFirst",
            "stride": 0,
            "direction": "Right",
        },
        "padding": {
            "strategy": {"Fixed": 99},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<unk>",
        },
        "added_tokens": [
            _PLAIN | {"id": i, "content": name, "special": True}
            for i, name in enumerate(pieces[:3])
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
            "vocab": {piece: i for i, piece in enumerate(dict.fromkeys(pieces))},
            "merges": [" ".join(pair) for pair in merges],
        },
        **changes,
    }


def folder(path: Path, description: Mapping[str, Any], **config: Any) -> Path:
    """Writes a Hugging Face folder."""
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(description))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def gguf_values(description: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a GGUF with a tokenizer."""
    vocab = description["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.get)
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t in SPECIALS else 1 for t in tokens],
        "tokenizer.ggml.merges": [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in description["model"]["merges"]
        ],
        "tokenizer.ggml.bos_token_id": vocab["<|im_start|>"],
        "tokenizer.ggml.eos_token_id": vocab["<|im_end|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def gguf(values: Mapping[str, Any]) -> bytes:
    """A GGUF with this metadata and no tensors."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, 0, len(values))]
    for name, value in values.items():
        parts += [_string(name), _typed(value)]
    return b"".join(parts)


def _typed(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    kind = 8 if isinstance(value[0], str) else 5
    items = [_string(v) if kind == 8 else struct.pack("<i", v) for v in value]
    return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(items)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
