import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from retro_jax.devices import sharding
from retro_jax.runs.checkpoints import Checkpoints, abstract
from tests import tiny_model

RUN = {"data": "abc", "seed": 1}


def _state(value: float):
    return {
        "params": {"w_in_DF": jnp.full((4, 8), value), "scale_D": jnp.arange(4.0)},
        "optimizer": (jnp.int32(7), {"w_in_DF": jnp.full((4, 8), -value)}),
    }


def _wanted(mesh):
    shapes = jax.eval_shape(lambda: _state(0.0))
    return abstract(shapes, sharding.state_shardings(shapes, mesh))


_TOLD: list[tuple[int, bool]] = []


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with steps 2 and 3 of three saved steps, of which two are kept."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def told(step: int) -> None:
        _TOLD.append((step, (folder / str(step) / "_CHECKPOINT_METADATA").exists()))

    keeper = Checkpoints(folder, keep=2, saved=told)
    for step in (1, 2, 3):
        keeper.save(step, _state(float(step)), RUN | {"step": step})
    keeper.close()
    return folder


def test_each_step_is_told_of_once_when_it_is_whole(saved):
    assert _TOLD == [(1, True), (2, True), (3, True)]


def test_the_newest_few_are_kept(saved):
    assert sorted(path.name for path in saved.iterdir() if path.is_dir()) == ["2", "3"]


@pytest.mark.parametrize("data, model", [(1, 1), (4, 2)])
def test_a_state_comes_back_on_any_mesh(saved, data, model):
    keeper = Checkpoints(saved, keep=2)
    wanted = _wanted(tiny_model.mesh(data, model))
    for given, expected in ((None, 3), (2, 2)):
        step, got = keeper.restore(wanted, RUN, step=given)
        assert step == expected
        jax.tree.map(np.testing.assert_array_equal, got, _state(float(expected)))
        assert got["params"]["w_in_DF"].sharding.spec == P("data", "model")
        assert jax.tree.structure(got) == jax.tree.structure(_state(0.0))
    keeper.close()


def test_a_checkpoint_of_another_run_is_refused_by_key(saved):
    keeper = Checkpoints(saved, keep=2)
    wanted = _wanted(tiny_model.mesh(1, 1))
    with pytest.raises(ValueError, match="seed = 1, this run has 2.*--workdir"):
        keeper.restore(wanted, RUN | {"seed": 2})
    with pytest.raises(ValueError, match="index = None, this run has 'exact'"):
        keeper.restore(wanted, {"index": "exact"})
    keeper.restore(wanted, {})  # what is not asked is not compared
    keeper.close()


def test_without_a_checkpoint_there_is_none(tmp_path):
    keeper = Checkpoints(tmp_path / "new", keep=1)
    assert keeper.latest_step() is None
    with pytest.raises(ValueError, match="no checkpoint in .*new: train first"):
        keeper.restore(_wanted(tiny_model.mesh(1, 1)), RUN)
    keeper.close()


def test_a_step_that_is_there_is_not_saved_again(tmp_path):
    keeper = Checkpoints(tmp_path, keep=2)
    keeper.save(1, _state(1.0), RUN)
    keeper.save(1, _state(5.0), RUN)
    keeper.close()
    keeper = Checkpoints(tmp_path, keep=2)
    _, got = keeper.restore(_wanted(tiny_model.mesh(1, 1)), RUN)
    assert got["params"]["w_in_DF"][0, 0] == 1.0
    keeper.close()
