"""The next token of each row: the likeliest, or one that is drawn.

Letters here: A likeliest tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the tokens of a text are chosen."""

    temperature: float = 0.0  # 0 = always the likeliest token
    top_k: int = 0  # tokens are drawn from so many likeliest ones; 0 = from all
    top_p: float = 1.0  # and of these from the likeliest that have this share
    min_p: float = 0.0  # and of these from those with this share of the likeliest's
    repetition_penalty: float = 1.0  # divides the logits of what stands in the text
    # what is subtracted from the logits of what was drawn: once, and each time
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0  # of what is drawn

    def validate(self) -> None:
        """Raises ValueError, naming the setting, if nothing can be chosen so."""
        for name, least, most in (
            ("temperature", 0.0, np.inf),
            ("top_k", 0, np.inf),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(
                    f"{name} must be in {least}..{most}, is {getattr(self, name)}"
                )
        if not 0 < self.repetition_penalty < np.inf:
            raise ValueError(
                f"repetition_penalty must be above 0, is {self.repetition_penalty}"
            )


class Rows(NamedTuple):
    """The settings of a batch's rows."""

    temperature_B: Float[Array, " B"]
    top_k_B: Int[Array, " B"]
    top_p_B: Float[Array, " B"]
    min_p_B: Float[Array, " B"]
    repetition_penalty_B: Float[Array, " B"]
    presence_penalty_B: Float[Array, " B"]
    frequency_penalty_B: Float[Array, " B"]
    seed_B: Array  # uint32


def rows(settings: Sequence[Sampling]) -> Rows:
    """Gathers the settings of rows.

    Raises:
        ValueError: naming the first setting by which nothing can be chosen.
    """
    for each in settings:
        each.validate()
    dtypes = (np.float32, np.int32, *[np.float32] * 5, np.uint32)
    names = [field.name for field in dataclasses.fields(Sampling)]
    return Rows(
        *(
            jnp.asarray(
                np.array([getattr(each, name) for each in settings]).astype(dtype)
            )
            for name, dtype in zip(names, dtypes, strict=True)
        )
    )


NUM_LIKELIEST = 5


class Likeliest(NamedTuple):
    """The likeliest tokens at each place of a chunk, by the model alone."""

    tokens_BMA: Int[Array, "B M A"]
    log_probs_BMA: Float[Array, "B M A"]

    @classmethod
    def room(cls, shape: tuple[int, int], vocab_size: int) -> "Likeliest":
        """Room for those of a chunk."""
        whole = (*shape, min(NUM_LIKELIEST, vocab_size))
        return cls(jnp.zeros(whole, jnp.int32), jnp.zeros(whole, jnp.float32))

    def told(self, logits_BV: Float[Array, "B V"], place) -> "Likeliest":
        """These with those of one place more."""
        total_B1 = jax.nn.logsumexp(logits_BV, axis=-1)[:, None]
        highest_BA, tokens_BA = jax.lax.top_k(logits_BV, self.tokens_BMA.shape[2])
        return Likeliest(
            self.tokens_BMA.at[:, place].set(tokens_BA),
            self.log_probs_BMA.at[:, place].set(highest_BA - total_B1),
        )


def draw(
    logits_BV: Float[Array, "B V"],
    settings: Rows,
    seen_BV: Bool[Array, "B V"],
    times_BV: Int[Array, "B V"],
    number_B: Int[Array, " B"],
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Chooses a token of each row; gives its log-probability by the model alone.

    What a row draws depends on its seed and number, not on what else is in the batch.

    Args:
        seen_BV: tokens that stand in a row's text, for the penalty of repetition.
        times_BV: how often each was drawn, for those of presence and frequency.
        number_B: how many tokens of the row were drawn before.
    """
    penalty_B1 = settings.repetition_penalty_B[:, None]
    punished_BV = jnp.where(
        logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1
    )
    wanted_BV = jnp.where(seen_BV, punished_BV, logits_BV)
    wanted_BV -= settings.presence_penalty_B[:, None] * (times_BV > 0)
    wanted_BV -= settings.frequency_penalty_B[:, None] * times_BV
    likeliest_B = jnp.argmax(wanted_BV, axis=-1)
    is_drawn_B = settings.temperature_B > 0
    # Most texts are greedy, and sorting a vocabulary takes as long as a small model.
    token_B = jax.lax.cond(
        jnp.any(is_drawn_B),
        lambda: jnp.where(
            is_drawn_B, _drawn(wanted_BV, settings, number_B), likeliest_B
        ),
        lambda: likeliest_B,
    )
    said_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)
    total_B = jax.nn.logsumexp(logits_BV, axis=-1)
    return token_B.astype(jnp.int32), said_B1[:, 0] - total_B


def _drawn(wanted_BV, settings: Rows, number_B) -> Int[Array, " B"]:
    temperature_B1 = jnp.maximum(settings.temperature_B, 1e-6)[:, None]
    # Shifted, so that a low temperature overflows nothing.
    scaled_BV = (wanted_BV - wanted_BV.max(axis=-1, keepdims=True)) / temperature_B1
    scaled_BV = jnp.where(kept(scaled_BV, settings), scaled_BV, -jnp.inf)

    def of_row(seed, number, logits_V):
        key = jax.random.fold_in(jax.random.key(seed), number)
        return jax.random.categorical(key, logits_V)

    return jax.vmap(of_row)(settings.seed_B, number_B, scaled_BV)


def kept(scaled_BV: Float[Array, "B V"], settings: Rows) -> Bool[Array, "B V"]:
    """The tokens that may be drawn; those as likely as the last of them are kept as well.

    Source: Holtzman et al. 2020 (nucleus sampling, arXiv 1904.09751) of the K likeliest;
        Nguyen et al. 2024 (min-p, arXiv 2407.01082).
    """
    sorted_BV = -jnp.sort(-scaled_BV, axis=-1)
    size = scaled_BV.shape[-1]
    top_k_B = jnp.where(settings.top_k_B > 0, settings.top_k_B, size)
    is_among_BV = jnp.arange(size) < top_k_B[:, None]
    shares_BV = jax.nn.softmax(jnp.where(is_among_BV, sorted_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(shares_BV, axis=-1) - shares_BV
    is_among_BV &= before_BV < settings.top_p_B[:, None]
    is_among_BV &= shares_BV >= settings.min_p_B[:, None] * shares_BV[:, :1]
    num_kept_B1 = jnp.maximum(is_among_BV.sum(axis=-1, keepdims=True), 1)
    least_B1 = jnp.take_along_axis(sorted_BV, num_kept_B1 - 1, axis=1)
    return scaled_BV >= least_B1
