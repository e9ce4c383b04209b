"""The abstract batch that is compiled has the shapes of the settings."""

import jax
import numpy as np
import pytest

from experiments.configs import retro
from tests import tiny_model
from tools.aot import compilation


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
