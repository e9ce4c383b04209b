"""Every config builds, fits together and takes a step."""

import dataclasses
import functools
import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import workdirs
from experiments.config import Experiment
from experiments.configs import ablations, retro
from retro_jax.config import MeshConfig
from retro_jax.devices import sharding
from retro_jax.model import parameters
from retro_jax.training import retrofit
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.step import train_step
from retro_jax.training.train_state import initial_state
from tests import tiny_retrofit

_CONFIGS = sorted(
    path.stem
    for path in (Path(__file__).parents[3] / "experiments" / "configs").glob("*.py")
    # Those of runs and of pretrained decoders are made of files.
    if path.stem not in ("__init__", "run", "retrofit", "finetuned")
)
# Retrofits are made from a unit of their sweep; the sweeps' tests check them.
_ROWS = [row for row in ablations.ROWS if not row.startswith("retrofit")]
_ARGUMENTS = {
    "tiny": ("", "baseline", "retrofit"),
    "ablations": (
        *ablations.SCALES,
        *(f"{row},{scale}" for scale in ("paper", "smoke") for row in _ROWS),
    ),
    "retro": (
        *("172m", "425m", "1.5b", "7.5b"),
        *("172m,baseline", "172m,retrofit", "172m,modern", "7.5b,modern,baseline"),
    ),
    "decoder_shapes": ("1.7b", "8b", "70b"),
}
# Tracing takes seconds; these have every kind of layer.
_TRACED = (
    ("tiny", ""),
    ("tiny", "baseline"),
    ("retro", "172m"),
    ("ablations", "continuation_only,small"),
    ("ablations", "no_cca_positions,small"),
)


def _cases():
    return [(name, arg) for name in _CONFIGS for arg in _ARGUMENTS[name]]


def _config(name: str, arg: str) -> Experiment:
    return importlib.import_module(f"experiments.configs.{name}").get_config(arg)


def _batch(cfg: Experiment, *, batch_size: int, num_chunks: int) -> dict:
    rng = np.random.default_rng(0)
    data, length = cfg.data, num_chunks * cfg.data.chunk_len
    shape = (batch_size, num_chunks, data.num_neighbours)
    tokens = rng.integers(0, 256, (batch_size, length + 1)).astype(np.int32)
    return {
        "inputs_BL": tokens[:, :-1],
        "targets_BL": tokens[:, 1:],
        "loss_weights_BL": np.ones((batch_size, length), np.float32),
        "target_bytes_BL": np.full((batch_size, length), 3, np.int32),
        "segments_BL": np.ones((batch_size, length), np.int32),
        "neighbours_BCNR": rng.integers(0, 256, (*shape, data.neighbour_len)).astype(
            np.int32
        ),
        "neighbour_lengths_BCN": np.full(shape, data.neighbour_len, np.int32),
    }


def _shallow(cfg: Experiment) -> Experiment:
    """With one layer of each kind that it has: others would only be traced once more."""
    model = cfg.model
    model.cca_layers = (2,) if model.cca_layers else ()
    model.depth = 2
    model.encoder_cca_layers = model.encoder_cca_layers[:1]
    model.encoder_depth = max(model.encoder_cca_layers, default=1)
    return cfg


@pytest.mark.parametrize(("name", "arg"), _cases())
def test_every_config_is_consistent_and_can_be_sharded(name, arg):
    cfg = _config(name, arg)
    cfg.validate()
    _shallow(cfg)
    optimizer = make_optimizer(cfg.optimizer, cfg.train.steps)
    shapes = jax.eval_shape(functools.partial(initial_state, cfg.model, optimizer, 0))
    mesh = sharding.make_mesh(MeshConfig(data=4, model=2))
    shardings = jax.tree.leaves(sharding.state_shardings(shapes, mesh))
    assert len(shardings) == len(jax.tree.leaves(shapes))


@pytest.mark.parametrize(("name", "arg"), _TRACED)
def test_the_whole_step_can_be_traced(name, arg):
    cfg = _shallow(_config(name, arg))
    optimizer = make_optimizer(cfg.optimizer, cfg.train.steps)
    shapes = jax.eval_shape(functools.partial(initial_state, cfg.model, optimizer, 0))
    batch = _batch(
        cfg, batch_size=cfg.train.batch_size, num_chunks=cfg.data.sequence_chunks
    )
    step = functools.partial(train_step, cfg.model, optimizer, cfg.train.accumulation)
    after, sums = jax.eval_shape(step, shapes, batch)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(
        lambda x: x.shape, shapes
    )
    assert set(sums) >= {"loss_nats", "tokens", "bytes", "gradient_norm"}


@pytest.mark.parametrize(("name", "arg"), _TRACED)
def test_every_config_takes_a_step_at_a_small_width(name, arg):
    cfg = _shallow(_config(name, arg))
    model = cfg.model
    model.vocab_size, model.width, model.ffw_width = 256, 32, 64
    model.num_heads = model.encoder_heads = 2
    model.head_size = model.encoder_head_size = 16
    model.encoder_width, model.encoder_ffw_width = 32, 64
    optimizer = make_optimizer(cfg.optimizer, 10)
    before = initial_state(model, optimizer, 0)
    step = jax.jit(functools.partial(train_step, model, optimizer, 1))
    after, sums = step(before, _batch(cfg, batch_size=2, num_chunks=2))
    assert np.isfinite(sums["loss_nats"])
    moved = [
        name
        for name, array in after["params"].items()
        if not np.array_equal(array, before["params"][name])
    ]
    assert len(moved) > 0.8 * len(before["params"])


@pytest.mark.parametrize(
    ("name", "args"),
    [("tiny", ("baseline", "retrofit")), ("retro", ("172m,baseline", "172m,retrofit"))],
)
def test_a_retrofit_fits_its_baseline_and_trains_less(name, args):
    baseline, cfg = (_config(name, arg) for arg in args)
    new = retrofit.new_names(cfg.model)
    make = functools.partial(parameters.initial_parameters, cfg.model, 0)
    shapes = jax.eval_shape(make)
    make = functools.partial(parameters.initial_parameters, baseline.model, 0)
    of_baseline = {name: array.shape for name, array in jax.eval_shape(make).items()}
    assert of_baseline == {n: a.shape for n, a in shapes.items() if n not in new}
    new_share = sum(shapes[n].size for n in new) / parameters.num_parameters(shapes)
    assert new_share < 0.5
    assert cfg.init_from and cfg.train.freeze and not baseline.init_from


def test_the_paper_retrofits_on_three_percent_of_the_sequences():
    for size, rate in (("172m", 2e-4), ("7.5b", 1e-4)):
        whole, part = _config("retro", size), _config("retro", f"{size},retrofit")
        sequences = part.train.steps * part.train.batch_size
        assert sequences == 0.03 * whole.train.steps * whole.train.batch_size
        assert part.train.batch_size == 256 and part.optimizer.learning_rate == rate
        assert part.optimizer.final_share == 0.1


@pytest.mark.parametrize("name", _CONFIGS)
def test_an_unknown_argument_is_named(name):
    with pytest.raises(ValueError, match="nonsense"):
        _config(name, "nonsense")


def test_ablations_of_the_paper_s_model_are_those_of_table_13():
    default = _config("ablations", "default").model
    assert (default.width, default.cca_layers) == (896, (6, 9, 12))
    layers = {
        name: _config("ablations", name).model.cca_layers
        for name in ("cca_1", "cca_6", "cca_12", "cca_all", "cca_every_3_from_1")
    }
    assert layers == {
        "cca_1": (1,),
        "cca_6": (6,),
        "cca_12": (12,),
        "cca_all": tuple(range(1, 13)),
        "cca_every_3_from_1": (1, 4, 7, 10),
    }
    for row in _ROWS:
        if row != "default":
            assert _config("ablations", row) != _config("ablations", "default")


def test_chunks_of_another_length_leave_sequences_as_long_as_they_are():
    for row in ("default", "chunks_of_32", "chunks_of_128"):
        data = _config("ablations", f"{row},small").data
        assert data.sequence_chunks * data.chunk_len == 512
        assert data.neighbour_len == 2 * data.chunk_len


def test_a_row_that_starts_from_another_one_is_made_by_the_sweep_alone():
    with pytest.raises(ValueError, match="retrofit_frozen starts from the baseline"):
        _config("ablations", "retrofit_frozen,small")


@pytest.mark.parametrize(
    ("name", "arg"), [("tiny", ""), ("tiny", "retrofit"), ("retro", "7.5b,fused")]
)
def test_a_run_s_settings_come_back_as_they_were(name, arg, tmp_path):
    cfg = _config(name, arg)
    cfg.data.corpus, cfg.train.steps = "/some\udcff/place", 3
    workdirs.record_settings(cfg, tmp_path)
    assert _config("run", str(tmp_path)) == cfg


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (None, "keeps no settings"),
        ("{}", "keeps no settings"),
        ('{"config": {"data": {"corpos": 1}}}', "of this version .*corpos"),
        ('{"config": {"data": 3}}', "is not of this version"),
        ('{"config": {"train": {"steps": 3}}}', "is not of this version"),
        ('{"config": [3]}', "is not of this version"),
    ],
)
def test_settings_that_can_not_be_taken_are_named(kept, message, tmp_path):
    if kept is not None:
        (tmp_path / "settings.json").write_text(kept)
    with pytest.raises(ValueError, match=message):
        _config("run", str(tmp_path))


def test_a_decoder_makes_the_experiment_of_its_retrofit(tmp_path):
    decoder = tiny_retrofit.decoder(tmp_path / "decoder")
    cfg = _config("retrofit", str(decoder))
    cfg.validate()
    cfg.set_vocab_size(400)
    assert (cfg.model.width, cfg.model.vocab_size, cfg.model.bos_id) == (32, 512, 0)
    assert cfg.init_from == cfg.data.tokenizer == str(decoder)
    assert cfg.has_cca and cfg.train.freeze and not cfg.model.cca_layers
    for name in ("no/such/decoder/here", str(tmp_path)):
        with pytest.raises(ValueError, match=r"\A[^\n]*\Z"):
            _config("retrofit", name)


@pytest.mark.parametrize(
    ("shape", "millions"), [("1.7b", 1_711), ("8b", 8_030), ("70b", 70_554)]
)
def test_shapes_of_decoders_have_their_parameters(shape, millions):
    cfg = _config("decoder_shapes", shape)
    cfg.validate()
    decoder = dataclasses.replace(cfg.model, cca_layers=())
    count = parameters.num_parameters(parameters.named(parameters.skeleton(decoder)))
    assert round(count / 1e6) == millions


def test_an_unknown_shape_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no shape '9b'; there are 1.7b, 8b, 70b"):
        _config("decoder_shapes", "9b")


@pytest.mark.parametrize(
    ("model", "place", "found"),
    [
        ("7.5b", "v5p:4x4x4", (1, 4)),  # as it was found
        ("172m", "h100:8", (1, 16)),  # two sequences a device
        ("172m", "v5e:16x16", (2, 1)),  # no parameter can be cut into 256 parts
        ("7.5b,retrofit", "v5p:4x4x4", (1, 2)),
    ],
)
def test_a_place_shares_out_a_step(model, place, found):
    cfg = retro.get_config(f"{model},{place}")
    assert (cfg.mesh.model, cfg.train.accumulation) == found
    cfg.validate()


@pytest.mark.parametrize("place", ["v9:2x2", "v5e:4x", "v5e:0x4", "h100:", "h100:24"])
def test_a_place_that_is_none_is_refused(place):
    with pytest.raises(ValueError, match=f"{place} (is not|can't share)|of {place}"):
        retro.get_config(f"172m,{place}")
