"""Other people's pretrained decoders: reading them as parameters, and writing them back."""

from retro_jax.pretrained.description import Description
from retro_jax.pretrained.exporting import (
    Exported,
    export,
    from_pretrained,
    load_retro,
)
from retro_jax.pretrained.loading import Pretrained, config_of, fingerprint_of, load

__all__ = [
    "Description",
    "Exported",
    "Pretrained",
    "config_of",
    "export",
    "fingerprint_of",
    "from_pretrained",
    "load",
    "load_retro",
]
