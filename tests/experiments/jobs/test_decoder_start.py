"""A pretrained decoder becomes a RETRO: one whole run, and starts that are refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.jobs import decoder_start
from experiments.jobs.run import Run
from experiments.jobs.training import Training
from retro_jax import pretrained
from retro_jax.config import MeshConfig
from retro_jax.devices import sharding
from tests import tiny_retrofit


def test_everything_is_measured_and_reported(run):
    _, workdir = run
    found = json.loads((workdir / "evaluation" / "results.json").read_text())
    conditions = found["conditions"]
    assert set(conditions) == {"off", "on", "untrained", "random"}
    beside = {*conditions, "prompt", "random unlimited"}
    assert set(found["prompt"]["conditions"]) == beside
    assert [each["from_tokens"] for each in found["by_longest_run"]] == [0, 8, 16]
    assert found["facts"]["asked"] == 8 >= found["facts"]["stated"] > 0
    read = {"off", "before", "on", "prompt", "edited"}
    assert read <= set(found["facts"]["right"]) <= {*read, "sentence"}
    bits = {name: values["bits_per_byte"] for name, values in conditions.items()}
    assert all(map(np.isfinite, bits.values()))
    ((layer, gates),) = found["gates"].items()
    assert set(gates["before"]) == {1.0} and gates["after"] != gates["before"]
    assert all(0 < share < 1 for share in gates["attention"])
    assert "tried" in json.loads((workdir / "reading.json").read_text())
    report = (workdir / "report.md").read_text()
    for title in ("What is copied", "in the prompt", "Questions of fact", "heads read"):
        assert title in report
    assert f"in layer {layer}, counted from 1" in report


def test_off_is_the_decoder_bit_for_bit(run, decoder):
    job, _ = run
    _, params = job().run.restored()
    for name, array in pretrained.load(decoder).params.items():
        np.testing.assert_array_equal(array, params[name], err_msg=name)
    new = set(params) - set(pretrained.load(decoder).params)
    assert new and all("cross" in name or "norm_source" in name for name in new)


def test_again_is_up_to_date_and_loads_neither_decoder_nor_model(
    run, capsys, monkeypatch
):
    job, workdir = run
    for module, name in ((decoder_start, "start"), (Run, "restored")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("loaded"))
    before = (workdir / "run.json").read_bytes()
    again = job()
    again.train(restart=False)
    again.evaluate()
    said = capsys.readouterr().out
    assert "training: up to date" in said and "evaluation: up to date" in said
    assert (workdir / "run.json").read_bytes() == before


def test_layers_that_are_named_by_hand_keep_the_heads_that_were_chosen(run):
    job, _ = run
    chosen = job().run.cfg
    named = job(cca_layers=chosen.model.cca_layers).run.cfg
    assert named.retrofit.open_heads == chosen.retrofit.open_heads != ()
    assert not job(cca_layers=(1, 2)).run.cfg.retrofit.open_heads


def test_other_numbers_are_drawn_by_step_and_the_same_in_each_pass(run):
    job, _ = run
    made = job().run
    made.cfg.retrofit = dataclasses.replace(
        made.cfg.retrofit, other_numbers_share=1.0, distinct_steps=2, unrelated_share=0
    )
    tokenizer, training = made.database.tokenizer, Training(made)
    batches = [batch["inputs_BL"] for batch in training.batches_from(0)]
    np.testing.assert_array_equal(batches[0], batches[2])
    made.cfg.retrofit.other_numbers_share = 0.0
    plain = [batch["inputs_BL"] for batch in Training(made).batches_from(0)]
    for rows, true_rows in zip(batches, plain, strict=True):
        for row, true_row in zip(rows, true_rows, strict=True):
            text, true = tokenizer.decode(row), tokenizer.decode(true_row)
            same = [ours == theirs for ours, theirs in zip(text, true, strict=True)]
            assert same == [not letter.isdecimal() for letter in true]


def _mesh():
    return sharding.make_mesh(MeshConfig())


def _no_batch():
    pytest.fail("heads that copy are known without text")


def _start(decoder, **retrofit):
    cfg = tiny_retrofit.experiment(decoder, "none")
    cfg.retrofit = dataclasses.replace(cfg.retrofit, **retrofit)
    return cfg, decoder_start.start(cfg, _mesh(), _no_batch)


def test_what_is_left_open_is_chosen_and_written_down(decoder):
    cfg, baseline = _start(decoder, num_cca_layers=2)
    assert cfg.model.cca_layers == (1, 2)
    assert cfg.retrofit.open_heads == ((0, 1, 2, 3),) * 2
    assert baseline.fingerprint == pretrained.fingerprint_of(decoder)
    own = baseline.params["decoder/2/attention/w_q_DHK"]
    assert np.array_equal(own, baseline.params["decoder/2/cross/w_q_DHK"])


def test_heads_may_be_chosen_by_what_the_first_batch_would_gain(run, decoder, capsys):
    job, _ = run
    cfg = tiny_retrofit.experiment(decoder, "none", cca_layers=())
    cfg.retrofit = dataclasses.replace(
        cfg.retrofit, chosen_by="gradient", num_cca_layers=1
    )
    decoder_start.start(cfg, _mesh(), Training(job().run).first_batch)
    assert len(cfg.model.cca_layers) == len(cfg.retrofit.open_heads) == 1
    assert cfg.retrofit.open_heads[0]
    assert "heads that gain, and how much" in capsys.readouterr().out


def test_what_is_set_by_hand_is_kept(decoder, capsys):
    cfg = tiny_retrofit.experiment(decoder, "none", cca_layers=(2,))
    cfg.retrofit.open_heads = ((3,),)
    params = decoder_start.start(cfg, _mesh(), _no_batch).params
    assert params["decoder/2/cross/gate_H"].tolist() == [0, 0, 0, 1]
    assert cfg.model.cca_layers == (2,)
    assert "gets CCA" not in capsys.readouterr().out
    assert all(isinstance(array, jax.Array) for array in params.values())


def _refused(decoder, **model):
    cfg = tiny_retrofit.experiment(decoder, "none", **model)
    return cfg, pytest.raises(ValueError, match=r"\A[^\n]*\Z")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"ffw_width": 64}, "has model.ffw_width = 48, this run has 64"),
        ({"rotary_base": 10.0}, "has model.rotary_base = 1000.0, this run has 10.0"),
        ({"depth": 3}, "leave to the decoder what belongs to it"),
    ],
)
def test_settings_of_another_decoder_are_refused_in_one_line(decoder, model, said):
    cfg, refused = _refused(decoder, **model)
    with refused as error:
        decoder_start.start(cfg, _mesh(), _no_batch)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("retrofit", "said"),
    [
        (
            {"copying_score": 0.9},
            "no head of this decoder copies: the best one's score",
        ),
        ({"open_heads": ((4,),)}, "heads lie in 0..3"),
        ({"open_heads": ((0,), (1,))}, "retrofit.open_heads has 2 layers"),
    ],
)
def test_heads_that_are_not_there_are_refused_in_one_line(decoder, retrofit, said):
    cfg, refused = _refused(decoder, cca_layers=())
    cfg.retrofit = dataclasses.replace(cfg.retrofit, **retrofit)
    with refused as error:
        decoder_start.start(cfg, _mesh(), _no_batch)
    assert said in str(error.value)


def test_weights_that_are_not_there_or_pickles_are_refused(decoder, tmp_path):
    cfg, _ = _refused(decoder)
    pickle = tmp_path / "weights.bin"
    pickle.write_bytes(b"\x80\x04.")
    for path, said in ((tmp_path / "none", "there is no"), (pickle, "is a pickle")):
        cfg.init_from = str(path)
        with pytest.raises((ValueError, OSError), match=said) as error:
            decoder_start.start(cfg, _mesh(), _no_batch)
        assert "\n" not in str(error.value)


def test_a_tokenizer_of_more_tokens_than_the_decoder_embeds_is_refused(decoder):
    cfg, refused = _refused(decoder)
    with refused as error:
        cfg.set_vocab_size(cfg.model.vocab_size + 1)
    assert "with the decoder's own" in str(error.value)
    cfg.set_vocab_size(300)  # of fewer is well
    assert cfg.model.vocab_size == 512
