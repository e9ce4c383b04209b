"""The RETRO model."""

from retro_jax.model.layers import Keys
from retro_jax.model.retro import Retro

__all__ = ["Keys", "Retro"]
