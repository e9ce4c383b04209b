"""What is known of a decoder before its weights are read, and settings that are checked."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from retro_jax.config import ModelConfig

VOCAB_MULTIPLE = (
    128  # of rows of an embedding table, as of our own databases' tokenizers
)
# What a ModelConfig says of the decoder itself; the rest is how it is used.
DECODER_FIELDS = (
    "vocab_size",
    "depth",
    "width",
    "num_heads",
    "head_size",
    "ffw_width",
    "tie_output",
    "positions",
    "num_key_heads",
    "gated_ffw",
    "ffw_activation",
    "norm_epsilon",
    "rotary_base",
    "rotary_scaling",
    "scale_embeddings",
    "qkv_biases",
    "qk_norms",
    "window_len",
)
# A size above is a mistake or malice; the largest published decoders stay far below.
_MAX_SIZE, _MAX_DEPTH = 2**24, 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """A pretrained decoder's shape and what else its makers say of it."""

    model: ModelConfig  # without CCA; no bos_id
    architecture: str  # as transformers names it
    vocab_rows: int  # tokens it knows; the model's embedding is padded with zero rows
    trained_len: int  # longest sequence, in tokens, it was trained on
    bos_id: int | None  # begins a text, as its settings say
    eos_ids: tuple[int, ...]  # any of them ends a text

    @property
    def eos_id(self) -> int | None:
        """The first token that ends a text; None if the settings name none."""
        return self.eos_ids[0] if self.eos_ids else None


class Settings:
    """Somebody else's settings by name; every look is checked and names the file."""

    def __init__(self, values: Mapping[str, Any], where: str):
        # null is how JSON says that there is none
        self.values = {name: v for name, v in values.items() if v is not None}
        self.nulls = values.keys() - self.values.keys()
        self.where = where

    def size(self, name: str, default: int | None = None, most: int = _MAX_SIZE) -> int:
        """A whole number from 1 on."""
        value = self.values.get(name, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self.wrong(name, f"a whole number from 1 to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self.values.get(name, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore
            raise self.wrong(name, "a number above 0")
        return float(value)  # type: ignore[arg-type]

    def flag(self, name: str, default: bool) -> bool:
        """Yes or no."""
        value = self.values.get(name, default)
        if type(value) is not bool:
            raise self.wrong(name, "true or false")
        return value

    def table(self, name: str) -> "Settings":
        """Settings inside of a setting; none if it is not there."""
        value = self.values.get(name, {})
        if not isinstance(value, Mapping):
            raise self.wrong(name, "an object")
        return Settings(value, f"{self.where}: {name}")

    def tokens(self, name: str, vocab_rows: int) -> tuple[int, ...]:
        """Ids of tokens: one, several or none."""
        value = self.values.get(name, [])
        ids = value if isinstance(value, list) else [value]
        if not all(type(token) is int and 0 <= token < vocab_rows for token in ids):
            raise self.wrong(name, f"ids of tokens below the vocabulary's {vocab_rows}")
        return tuple(ids)

    def wrong(self, name: str, needed: str) -> ValueError:
        """The error for a setting that is not what it must be."""
        if name not in self.values:
            return ValueError(f"{self.where}: {name} is missing, must be {needed}")
        shown = repr(self.values[name])
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return ValueError(f"{self.where}: {name} must be {needed}, is {shown}")


def decoder_config(
    settings: Settings, names: Mapping[str, str], **others: Any
) -> ModelConfig:
    """The model of a decoder of the Llama family.

    Args:
        names: what the sizes are called in these settings: vocab_size, depth, width,
            num_heads, ffw_width.
        others: fields of ModelConfig that differ between families.
    Raises:
        ValueError: naming the setting that can't be.
    """
    sizes: dict[str, Any] = {
        field: settings.size(
            name,
            others.pop(field, None),
            most=_MAX_DEPTH if field == "depth" else _MAX_SIZE,
        )
        for field, name in names.items()
    }
    heads, key_heads = sizes["num_heads"], others["num_key_heads"]
    if heads % key_heads:
        raise ValueError(
            f"{settings.where}: {heads} heads are not a multiple of {key_heads} key heads"
        )
    sizes["vocab_size"] += -sizes["vocab_size"] % VOCAB_MULTIPLE
    model = ModelConfig(
        **sizes,
        **others,
        positions="rotary",
        gated_ffw=True,
        ffw_activation="silu",
        scale_embeddings=False,
    )
    try:
        model.validate()
    except ValueError as error:
        raise ValueError(f"{settings.where}: {error}") from error
    return model


def head_size(settings: Settings, name: str, width: str, heads: int) -> int:
    """The width of a head, where settings leave it out its share of the model's."""
    if name in settings.values:
        return settings.size(name)
    if settings.size(width) % heads:
        raise settings.wrong(width, f"a multiple of the {heads} heads")
    return settings.size(width) // heads
