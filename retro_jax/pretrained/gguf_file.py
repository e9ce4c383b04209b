"""A decoder in a GGUF file, as llama.cpp writes and quantises them.

The header is read here: what the `gguf` library makes of it takes seconds for a vocabulary
of 49,152 and believes every length. The library undoes the quantisations.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (the format).
"""

import dataclasses
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from retro_jax.pretrained.description import (
    Description,
    Settings,
    decoder_config,
    head_size,
)
from retro_jax.pretrained.stored_tensors import PLAIN_FORMS, StoredTensor

FAMILIES = {
    "llama": "LlamaForCausalLM",  # Mistral's too
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_SIZES = {
    "depth": "block_count",
    "width": "embedding_length",
    "num_heads": "attention.head_count",
    "ffw_width": "feed_forward_length",
}
# What the format's numbers of types are to `struct`; 8 is a string, 9 an array.
_TYPES = dict(enumerate(["B", "b", "H", "h", "I", "i", "f", "?"])) | {
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MAX_HEADER_BYTES = 2**26  # vocabularies of 256,000 with their merges take a quarter
_MAX_TENSORS = 2**16
_PLAIN_TYPES = {0: "F32", 1: "F16", 30: "BF16"}
# What llama.cpp writes for Llama 3: low and high frequency factor, original length.
_LLAMA3 = (1.0, 4.0, 8192.0)


@dataclasses.dataclass(frozen=True)
class _Length:
    """The length of an array, whose values are passed over."""

    count: int

    def __repr__(self):
        return f"an array of {self.count}"


class _Header:
    """Reads values of a header one after the other, never past the file's end."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path = file, path
        self.rest = min(path.stat().st_size, _MAX_HEADER_BYTES)
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.rest:
            raise ValueError(
                f"{self.path} is cut, or damaged: its header runs over its end"
            )
        self.rest -= count
        self.position += count
        if len(taken := self.file.read(count)) < count:  # cut since
            raise ValueError(f"{self.path} is cut")
        return taken

    def number(self, letter: str) -> Any:
        """The next number."""
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def string(self) -> str:
        """The next text."""
        return self.take(self.number("Q")).decode(errors="replace")

    def value(self) -> Any:
        """The next value of metadata, which says its type."""
        kind = self.number("I")
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(self._letter(kind))
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            for _ in range(count):
                self.take(self.number("Q"))
        else:
            self.take(count * struct.calcsize("<" + self._letter(kind)))
        return _Length(count)

    def _letter(self, kind: int) -> str:
        if kind not in _TYPES:
            raise ValueError(f"{self.path} has metadata of an unknown type {kind}")
        return _TYPES[kind]


def read(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """The metadata and the tensors of a file, the latter not read.

    Raises:
        ValueError: in one line, naming the file, if it is damaged or of no known form.
    """
    with open(path, "rb") as file:
        header = _Header(file, path)
        if path.stat().st_size < 24 or header.take(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file")
        if (version := header.number("I")) not in (2, 3):
            raise ValueError(
                f"{path} is GGUF of version {version}, or big-endian; read are 2 and 3"
            )
        num_tensors, num_values = header.number("Q"), header.number("Q")
        if num_tensors > _MAX_TENSORS:
            raise ValueError(f"{path} claims {num_tensors} tensors")
        metadata = {}
        for _ in range(num_values):
            name = header.string()
            metadata[name] = header.value()
        entries = {}
        for _ in range(num_tensors):
            name = header.string()
            if name in entries:
                raise ValueError(f"{path} has two tensors {name:.80}")
            entries[name] = _entry(header, name)
        alignment = Settings(metadata, str(path)).size("general.alignment", 32)
        start = header.position + -header.position % alignment
    tensors = {
        name: dataclasses.replace(tensor, offset=start + tensor.offset)
        for name, tensor in entries.items()
    }
    _check_places(path, tensors)
    return metadata, tensors


def _entry(header: _Header, name: str) -> StoredTensor:
    """The description of a tensor; its offset is from the start of the data."""
    num_axes = header.number("I")
    if not 1 <= num_axes <= 4:
        raise ValueError(f"{header.path}: tensor {name:.80} has {num_axes} axes")
    # The fastest axis comes first there, and last here.
    shape = tuple(header.number("Q") for _ in range(num_axes))[::-1]
    form, numbers, num_bytes = _form(header.number("I"), name, header.path)
    if shape[-1] % numbers:
        raise ValueError(
            f"{header.path}: tensor {name:.80} has rows of {shape[-1]}, no multiple of "
            f"the {numbers} of a block of {form}"
        )
    return StoredTensor(
        path=header.path,
        offset=header.number("Q"),
        shape=shape,
        form=form,
        row_bytes=shape[-1] // numbers * num_bytes,
    )


def _form(kind: int, name: str, path: Path) -> tuple[str, int, int]:
    """A type of numbers: its name, the numbers of a block and the block's bytes."""
    if kind in _PLAIN_TYPES:
        return _PLAIN_TYPES[kind], 1, PLAIN_FORMS[_PLAIN_TYPES[kind]].itemsize
    import gguf  # which takes a third of a second, for quantised files alone

    try:
        form = gguf.GGMLQuantizationType(kind)
        numbers, num_bytes = gguf.GGML_QUANT_SIZES[form]
        gguf.dequantize(np.zeros((1, num_bytes), np.uint8), form)
    except (ValueError, KeyError, NotImplementedError):
        raise ValueError(
            f"{path}: tensor {name:.80} is of type {kind}, which is not read; give F32, "
            "F16, BF16, Q8_0, Q4_K or another quantisation of today"
        ) from None
    return form.name, numbers, num_bytes


def _check_places(path: Path, tensors: dict[str, StoredTensor]) -> None:
    end, file_bytes = 0, path.stat().st_size
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset < end:
            raise ValueError(f"{path}: tensor {name:.80} overlaps the one before it")
        end = tensor.offset + tensor.num_bytes
        if end > file_bytes:
            raise ValueError(
                f"{path} is cut: {file_bytes} bytes, tensor {name:.80} ends at {end}"
            )


def describe(
    path: Path, metadata: dict[str, Any], tensors: dict[str, StoredTensor]
) -> Description:
    """The decoder that a file's metadata describe.

    Raises:
        ValueError: in one line, naming the setting, for what is damaged or not expressible.
    """
    every = Settings(metadata, str(path))
    family = metadata.get("general.architecture")
    if family not in FAMILIES:
        raise every.wrong("general.architecture", f"one of {', '.join(FAMILIES)}")
    prefix = f"{family}."
    settings = Settings(
        {
            name.removeprefix(prefix): value
            for name, value in metadata.items()
            if name.startswith(prefix)
        },
        f"{path}: {family}",
    )
    _refuse_what_the_model_lacks(every, settings)
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{path} lacks token_embd.weight")
    rows = tensors["token_embd.weight"].shape[0]
    if settings.values.get("vocab_size", rows) != rows:
        raise settings.wrong("vocab_size", f"the {rows} rows of token_embd.weight")
    vocabulary = metadata.get("tokenizer.ggml.tokens")
    if isinstance(vocabulary, _Length) and vocabulary.count > rows:
        raise ValueError(
            f"{path}: the vocabulary has {vocabulary.count} tokens, the embedding {rows}"
        )
    heads = settings.size("attention.head_count")
    size = head_size(settings, "attention.key_length", "embedding_length", heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if settings.values.get(name, size) != size:
            raise settings.wrong(name, f"a head's size, {size}")
    model = decoder_config(
        settings,
        {**_SIZES, "vocab_size": "rows"},
        vocab_size=rows,
        num_key_heads=settings.size("attention.head_count_kv", heads),
        head_size=size,
        tie_output="output.weight" not in tensors,
        norm_epsilon=_short(settings.number("attention.layer_norm_rms_epsilon", 1e-6)),
        rotary_base=_short(settings.number("rope.freq_base", 10_000.0)),
        rotary_scaling=_rotary_scaling(path, settings, tensors, size),
        qkv_biases=family == "qwen2",
        qk_norms=family == "qwen3",
    )
    return Description(
        model=model,
        architecture=FAMILIES[family],
        vocab_rows=rows,
        trained_len=settings.size("context_length"),
        bos_id=next(iter(every.tokens("tokenizer.ggml.bos_token_id", rows)), None),
        eos_ids=every.tokens("tokenizer.ggml.eos_token_id", rows),
    )


def _short(number: float) -> float:
    """A number that was stored as float32, as people write it: 1e-5, not 9.99999e-06."""
    return float(str(np.float32(number)))


def _refuse_what_the_model_lacks(every: Settings, settings: Settings) -> None:
    if every.values.get("split.count", 1) not in (0, 1):
        raise every.wrong("split.count", "1: join the parts with llama-gguf-split")
    for name, allowed in (
        ("expert_count", (0,)),  # Mixtral calls itself llama
        ("rope.scaling.type", ("none",)),
        ("attention.sliding_window", (0,)),
    ):
        if settings.values.get(name, allowed[0]) not in allowed:
            raise settings.wrong(name, f"{allowed[0]!r}; our model has no other")


def _rotary_scaling(
    path: Path, settings: Settings, tensors: dict[str, StoredTensor], size: int
) -> tuple[float, float, float, float] | None:
    """Llama 3's scaling, which files keep as the divisor of every frequency.

    Only the factor differs between its versions, and it is the largest divisor; that the
    others are what follows from it is checked.
    """
    stored = tensors.get("rope_freqs.weight")
    if stored is None:
        return None
    if stored.form != "F32" or stored.shape != (size // 2,):
        raise ValueError(
            f"{path}: rope_freqs.weight must be {size // 2} numbers of F32"
        )
    [(_, block)] = stored.blocks()
    given = block.view("<f4")[0].astype(np.float64)
    factor = float(given.max())
    low, high, original = _LLAMA3
    base = settings.number("rope.freq_base", 10_000.0)
    turns = original / (2 * math.pi * base ** (np.arange(0, size, 2) / size))
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    if factor > 0 and np.allclose(given, 1, atol=1e-6):
        return None
    if not (
        factor > 0 and np.allclose(1 / given, (1 - smooth) / factor + smooth, 1e-4)
    ):
        raise ValueError(
            f"{path}: rope_freqs.weight is not the scaling of Llama 3; our model has no "
            "other"
        )
    return factor, low, high, original
