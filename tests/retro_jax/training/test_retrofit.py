"""A RETRO that starts from a baseline: equal at first, and without retrieval for ever."""

import contextlib
import dataclasses
import functools
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retro_jax.config import OptimizerConfig, TrainConfig
from retro_jax.devices import sharding
from retro_jax.model import parameters
from retro_jax.runs import checkpoints
from retro_jax.training import retrofit
from retro_jax.training.loop import train
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.step import summed_gradients
from retro_jax.training.train_state import first_state, initial_state, partition
from tests import tiny_model

# 40 stands in the feed-forward matrices of the backbone alone.
CFG = tiny_model.small_config(vocab_size=16, ffw_width=40)
BASELINE_CFG = dataclasses.replace(CFG, cca_layers=())
BASELINE = tiny_model.parameters(BASELINE_CFG)
NEW = retrofit.new_names(CFG)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)
STEPS = TrainConfig(steps=4, batch_size=4, log_every=1, checkpoint_every=2)
TOKENIZED = {"tokenizer": "t1", "dataset": "d1"}


def _model_run(cfg) -> dict:
    """What `Experiment.identity` says of a model."""
    return {"model": dataclasses.asdict(cfg)}


def _batch(step: int) -> dict:
    return tiny_model.batch(CFG, num_sequences=4, seed=step)


def _train(workdir, *, backbone=BASELINE):
    """Four steps on a mesh of four devices."""

    def batches_from(step):
        return (_batch(number) for number in itertools.count(step))

    mesh = tiny_model.mesh(2, 2)
    if backbone is not None:  # as `load` gives it; training uses it up
        shardings = sharding.state_shardings(backbone, mesh)
        backbone = jax.device_put(jax.device_get(backbone), shardings)
    made = train(
        *(CFG, OPTIMIZER, STEPS, mesh, batches_from, workdir, {}),
        trained=NEW,
        backbone=backbone,
    )
    return jax.device_get(made)


def _logits(cfg, params, *, retrieval: bool):
    batch = _batch(9)
    found = (batch["neighbours_BCNR"], batch["neighbour_lengths_BCN"])
    inputs = (batch["inputs_BL"], *(found if retrieval else (None, None)))
    return np.asarray(tiny_model.forward(cfg)(params, *inputs, batch["segments_BL"]))


def _first(cfg, baseline) -> dict:
    make = functools.partial(initial_state, cfg, optax.identity(), 0)
    mesh = tiny_model.mesh(1, 1)
    shardings = sharding.state_shardings(jax.eval_shape(make), mesh)
    return first_state(make, shardings, baseline)["params"]


@pytest.fixture(scope="module")
def retrofitted(tmp_path_factory):
    """A frozen retrofit of four steps: its folder and its end."""
    workdir = tmp_path_factory.mktemp("retrofit")
    return workdir, _train(workdir)


@pytest.fixture(scope="module")
def saved_baseline(tmp_path_factory):
    """A baseline's workdir with steps 1 and 3; only step 3 holds BASELINE."""
    workdir = tmp_path_factory.mktemp("baseline")
    _save(workdir, {1: jax.tree.map(np.zeros_like, BASELINE), 3: BASELINE})
    return workdir


def _save(workdir, params_of_step: dict, run=None):
    run = _model_run(BASELINE_CFG) | TOKENIZED if run is None else run
    keeper = checkpoints.Checkpoints(workdir / "checkpoints", keep=9)
    for step, params in params_of_step.items():
        params = jax.tree.map(jnp.asarray, params)
        slots = {name: jnp.ones_like(array) for name, array in params.items()}
        keeper.save(step, {"params": params, "optimizer": (slots,)}, run)
    keeper.close()


def _copying(cfg):
    """CFG, with a start as a copier."""
    return dataclasses.replace(
        cfg, encoder_width=cfg.width, share_embeddings=True, copy_init=True
    )


@pytest.mark.parametrize("cfg", [CFG, _copying(CFG)], ids=["random", "copier"])
def test_step_0_is_the_baseline_bit_for_bit_with_retrieval(cfg):
    params = _first(cfg, BASELINE)
    expected = _logits(BASELINE_CFG, BASELINE, retrieval=False)
    np.testing.assert_array_equal(_logits(cfg, params, retrieval=True), expected)
    new = retrofit.new_names(cfg)
    assert set(params) == new | set(BASELINE) and new.isdisjoint(BASELINE)
    output = "decoder/1/cross/w_o_HKD"
    zero = {n for n in new if "/w_" in n and not np.asarray(params[n]).any()}
    assert zero == {output}
    if cfg.copy_init:  # what finds the token is kept, only its output is switched off
        copier = jax.jit(parameters.initial_parameters, static_argnums=(0, 1))(cfg, 0)
        for name in ("decoder/1/cross/w_v_EHK", "encoder/layers/1/attention/w_o_HKD"):
            np.testing.assert_allclose(params[name], copier[name], atol=1e-6)
    params[output] = params[output] + 0.1  # retrieval does reach the logits
    assert (_logits(cfg, params, retrieval=True) != expected).any()


def test_a_frozen_backbone_stays_and_everything_new_is_trained(retrofitted):
    _, end = retrofitted
    begin = _first(CFG, BASELINE)
    for name, array in end["params"].items():
        if name in BASELINE:
            np.testing.assert_array_equal(array, BASELINE[name], err_msg=name)
        else:
            assert (array != begin[name]).any(), name
    for slot in ("mu", "nu"):
        assert set(optax.tree_utils.tree_get(end["optimizer"], slot)) == NEW


def test_without_retrieval_it_is_the_baseline(retrofitted):
    _, end = retrofitted
    off = _logits(CFG, end["params"], retrieval=False)
    expected = _logits(BASELINE_CFG, BASELINE, retrieval=False)
    np.testing.assert_array_equal(off, expected)
    assert (_logits(CFG, end["params"], retrieval=True) != off).any()


def test_unfrozen_everything_has_slots():
    """And a gradient, see below; the update is that of any run."""
    make = functools.partial(initial_state, CFG, make_optimizer(OPTIMIZER, 9), 0)
    for trained, names in ((None, NEW | set(BASELINE)), (NEW, NEW)):
        made = jax.eval_shape(functools.partial(make, trained))
        slots = optax.tree_utils.tree_get(made["optimizer"], "mu")
        assert set(slots) == names and set(made["params"]) == NEW | set(BASELINE)


def test_a_killed_retrofit_goes_on_bit_for_bit_without_its_baseline(
    retrofitted, tmp_path
):
    workdir, expected = retrofitted
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "4")
    got = _train(again, backbone=None)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def _shapes_computed(jaxpr) -> set[tuple[int, ...]]:
    """Shapes of all that a traced function computes, inner functions included."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {variable.aval.shape for variable in equation.outvars}
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found |= _shapes_computed(inner)
    return found


@pytest.mark.parametrize(
    ("remat", "accumulation"), [("none", 1), ("dots", 1), ("dots", 2)]
)
def test_gradients_of_the_backbone_are_not_even_computed(remat, accumulation):
    cfg = dataclasses.replace(CFG, depth=2, remat=remat, dtype="float32")
    shapes = jax.eval_shape(functools.partial(parameters.initial_parameters, cfg, 0))
    of_backbone = {shapes["decoder/1/ffw/w_in_DF"].shape} | {(40, 16)}

    def computed(trained):
        def gradients(params, batch):
            params, frozen = partition(params, trained)
            return summed_gradients(cfg, params, frozen, batch, accumulation)

        return _shapes_computed(jax.make_jaxpr(gradients)(shapes, _batch(0)))

    assert of_backbone <= computed(None)
    assert not of_backbone & computed(NEW)


def test_paths_name_a_run_its_checkpoints_or_one_of_them(saved_baseline):
    folder = saved_baseline / "checkpoints"
    assert retrofit.find(saved_baseline) == (folder, 3)
    assert retrofit.find(folder) == (folder, 3)
    assert retrofit.find(folder / "1") == (folder, 1)


def test_a_missing_folder_and_an_empty_one_are_named(tmp_path):
    with pytest.raises(ValueError, match="no folder .*nothing; give the folder"):
        retrofit.find(tmp_path / "nothing")
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(ValueError, match="no checkpoint in .*checkpoints; give"):
        retrofit.find(tmp_path)


def _load(path, cfg=CFG, run=TOKENIZED, mesh=(1, 1)) -> retrofit.Baseline:
    return retrofit.load(path, cfg, tiny_model.mesh(*mesh), run)


def test_a_baseline_is_read_whole_and_left_as_it_is(saved_baseline):
    saving = saved_baseline / "checkpoints" / "4.orbax-checkpoint-tmp"
    saving.mkdir()  # it is still being trained
    read = _load(saved_baseline, mesh=(2, 2))
    assert read.step == 3 and saving.exists()
    saving.rmdir()
    assert set(read.params) == set(BASELINE)
    for name, array in BASELINE.items():
        np.testing.assert_array_equal(read.params[name], array)
    other = dataclasses.replace(CFG, chunk_len=8, neighbour_len=16, remat="none")
    assert _load(saved_baseline, other).fingerprint == read.fingerprint


def test_the_fingerprint_is_of_the_contents(saved_baseline, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(saved_baseline, moved)
    known = _load(saved_baseline).fingerprint
    assert known == _load(moved, mesh=(4, 2)).fingerprint
    assert known == retrofit.fingerprint(dict(reversed(BASELINE.items())))
    assert known != _load(moved / "checkpoints" / "1").fingerprint
    name = "decoder/1/ffw/w_in_DF"
    values = np.array(BASELINE[name])
    values[3, 4] = np.nextafter(values[3, 4], np.float32(9))
    assert known != retrofit.fingerprint(BASELINE | {name: values})
    swapped = np.array(BASELINE[name])
    swapped[[2, 3]] = swapped[[3, 2]]
    assert known != retrofit.fingerprint(BASELINE | {name: swapped})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 32}, "init_from .*/3 has model.width = 16, this run has 32"),
        ({"depth": 2}, "model.depth = 1, this run has 2"),
        ({"vocab_size": 48}, "model.vocab_size = 16, this run has 48"),
        ({"tie_output": False}, "model.tie_output = True, this run has False"),
    ],
)
def test_a_baseline_of_another_shape_is_refused_by_field(
    saved_baseline, changes, message
):
    with pytest.raises(ValueError, match=message):
        _load(saved_baseline, dataclasses.replace(CFG, **changes))


def test_another_tokenizer_is_refused(saved_baseline):
    with pytest.raises(ValueError, match="tokenizer t1, this run has t2"):
        _load(saved_baseline, run={"tokenizer": "t2", "dataset": "d1"})
    _load(saved_baseline, run={"tokenizer": "t1", "dataset": "d2"})


def test_a_retro_is_no_baseline(retrofitted, tmp_path):
    _, end = retrofitted
    _save(tmp_path, {1: end["params"]}, _model_run(CFG) | TOKENIZED)
    with pytest.raises(ValueError, match=r"is a RETRO \(model.cca_layers = \[1\]\)"):
        _load(tmp_path)


def test_without_a_word_on_its_model_the_arrays_decide(retrofitted, tmp_path):
    """As a run that was started from Python may leave it."""
    _, end = retrofitted
    _save(tmp_path / "retro", {1: end["params"]}, TOKENIZED)
    with pytest.raises(ValueError, match="is no baseline .* it has decoder/1/cross/"):
        _load(tmp_path / "retro")
    _save(tmp_path / "baseline", {1: BASELINE}, TOKENIZED)
    _load(tmp_path / "baseline")
    with pytest.raises(ValueError, match="lacks decoder/2/"):
        _load(tmp_path / "baseline", dataclasses.replace(CFG, depth=2))
    with pytest.raises(ValueError, match=r"has decoder/1/ffw/w_in_DF \(16, 40\), this"):
        _load(tmp_path / "baseline", dataclasses.replace(CFG, ffw_width=48))


def test_parameters_are_read_without_the_optimizer(retrofitted):
    """What evaluation and generation do; they need not know what was frozen."""
    workdir, end = retrofitted
    shapes = jax.eval_shape(functools.partial(parameters.initial_parameters, CFG, 0))
    mesh = tiny_model.mesh(2, 1)
    wanted = checkpoints.abstract(shapes, sharding.state_shardings(shapes, mesh))
    keeper = checkpoints.Checkpoints(workdir / "checkpoints", keep=None)
    with contextlib.closing(keeper):
        step, restored = keeper.restore({"params": wanted}, {}, part=True)
    assert step == 4 and restored.keys() == {"params"}
    params = jax.device_get(restored["params"])
    jax.tree.map(np.testing.assert_array_equal, params, end["params"])
