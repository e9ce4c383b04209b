"""The models and batches whose steps are measured."""

import jax
import pytest

from retro_jax.model import parameters
from tools.benchmark import sizes


def test_settings_by_name():
    cfg = sizes.override(sizes.model("172m"), "dtype=bfloat16,cca_layers=(3,),depth=4")
    assert (cfg.dtype, cfg.cca_layers, cfg.depth) == ("bfloat16", (3,), 4)
    assert sizes.override(cfg, "") == cfg
    with pytest.raises(ValueError, match="no setting 'widht'"):
        sizes.override(cfg, "widht=4")
    with pytest.raises(ValueError, match="depth must be int, is '3.5'"):
        sizes.override(cfg, "depth=3.5")
    with pytest.raises(ValueError, match="model.depth must be int, is 'abc'"):
        sizes.override(cfg, "depth=abc")


def test_the_peer_shape_has_the_peers_parameters():
    """82.67 M there, of which 0.3 M are positions and biases that ours has not."""
    shapes = jax.eval_shape(
        lambda: parameters.initial_parameters(sizes.model("peer"), 0)
    )
    theirs = 82_674_432
    assert parameters.num_parameters(shapes) == pytest.approx(theirs, rel=0.06)
