"""What heads would gain is the loss's own slope, and is told as shares of the best."""

import dataclasses

import jax
import numpy as np
import pytest

from retro_jax.config import RetrofitConfig
from retro_jax.model import inherited_cca
from retro_jax.training import head_gains, step
from tests import tiny_decoder
from tests.retro_jax.training.test_encodings import make_batch

DECODER = tiny_decoder.config(cca_layers=())


def scored(seed: int = 0) -> dict[str, np.ndarray]:
    batch = make_batch(seed)
    ones_BL = np.ones(batch["inputs_BL"].shape, np.float32)
    return {**batch, "loss_weights_BL": ones_BL, "target_bytes_BL": ones_BL}


def test_gains_are_what_opening_a_gate_a_little_gains():
    batch, backbone = scored(), tiny_decoder.backbone()
    gains_TH = head_gains.head_gains(DECODER, backbone, batch)
    assert gains_TH.shape == (DECODER.depth, DECODER.num_heads)
    assert gains_TH.max() == 1.0
    cfg = dataclasses.replace(DECODER, cca_layers=(1, 2, 3, 4))
    shut = inherited_cca.cca_parameters(cfg, RetrofitConfig(), backbone, ((),) * 4, 0)
    # The largest gain, the smallest and one between.
    places = [np.unravel_index(i, gains_TH.shape) for i in gains_TH.argsort(axis=None)]
    lost = {}
    for layer, head in (places[0], places[7], places[-1]):
        for gate in (-0.02, 0.02):
            name = f"decoder/{layer + 1}/cross/gate_H"
            opened = {**shut, name: shut[name].at[head].set(gate)}
            nats, _ = jax.jit(step.loss, static_argnums=2)(
                {**backbone, **opened}, {}, cfg, batch
            )
            lost[layer, head, gate] = float(nats)
    slopes = [
        lost[layer, head, -0.02] - lost[layer, head, 0.02]
        for layer, head in (places[0], places[7], places[-1])
    ]
    expected = [gains_TH[place] for place in (places[0], places[7], places[-1])]
    np.testing.assert_allclose(np.array(slopes) / slopes[-1], expected, atol=0.03)


def test_no_head_that_gains_is_an_error_that_says_what_to_do():
    batch = scored()
    batch["neighbour_lengths_BCN"][:] = 0
    with pytest.raises(ValueError, match="retrofit.chosen_by=copying"):
        head_gains.head_gains(DECODER, tiny_decoder.backbone(), batch)
