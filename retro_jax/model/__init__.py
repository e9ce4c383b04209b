"""The RETRO model."""

from retro_jax.model.retro import Retro

__all__ = ["Retro"]
