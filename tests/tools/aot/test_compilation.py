"""The step that is compiled has the shapes of the settings, and sends what they ask for."""

import math

import jax
import numpy as np
import pytest

from experiments.configs import retro, tiny
from retro_jax.model import parameters
from tests import tiny_model
from tools.aot import compilation, hlo


def test_the_abstract_batch_is_that_of_the_settings():
    cfg = retro.get_config("7.5b")
    cfg.train.batch_size, cfg.train.accumulation = 64, 2
    batch = compilation.abstract_batch(cfg, tiny_model.mesh(4, 2))
    tokens, chunks = (64, 2048), (64, 32, 2)
    assert {name: one.shape for name, one in batch.items()} == {
        "inputs_BL": tokens,
        "targets_BL": tokens,
        "loss_weights_BL": tokens,
        "target_bytes_BL": tokens,
        "segments_BL": tokens,
        "neighbours_BCNR": (*chunks, 128),
        "neighbour_lengths_BCN": chunks,
    }
    floats = {name for name, one in batch.items() if one.dtype == np.float32}
    assert floats == {"loss_weights_BL"}
    for one in batch.values():
        assert one.sharding.shard_shape(one.shape)[0] == 64 // 4
        assert isinstance(one, jax.ShapeDtypeStruct)
    cfg.train.batch_size = 6
    with pytest.raises(ValueError, match=r"train\.batch_size"):
        compilation.abstract_batch(cfg, tiny_model.mesh(4, 2))


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_device_sends_what_its_parameters_ask_for(devices):
    """Data parallelism with parameters spread over all devices, as compiled for CPUs.

    Every matrix is gathered once. CPUs have no reduce-scatter: the gradients are reduced
    whole, which takes two rounds of a ring. Shared tables would be reduced once a use.
    """
    cfg = tiny.get_config()
    cfg.train.batch_size, cfg.data.sequence_chunks = 8, 1
    cfg.model.depth, cfg.model.cca_layers, cfg.model.vocab_size = 1, (1,), 256
    cfg.model.share_embeddings = cfg.model.tie_output = False
    cfg.model.positions, cfg.model.dtype = "rotary", "float32"
    cfg.model.copy_init = False
    params = parameters.named(parameters.skeleton(cfg.model)).values()
    every = sum(4 * math.prod(one.shape) for one in params)
    matrices = sum(4 * math.prod(one.shape) for one in params if len(one.shape) > 1)
    expected = (matrices + 2 * every) * (devices - 1) / devices
    mesh = tiny_model.mesh(devices, 1)
    program = hlo.Program(compilation.lower_step(cfg, mesh).compile().as_text())
    sent = sum(one.sent_bytes for one in program.collectives())
    assert sent == pytest.approx(expected, rel=0.1)
