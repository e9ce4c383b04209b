"""A run's model becomes a folder: the decoder's own files, its CCA, its limits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.text.tokenizer import Tokenizer
from experiments.jobs import export
from retro_jax import Retro, pretrained
from retro_jax.devices import sharding
from retro_jax.model import parameters
from tests import fast_tokenizers, tiny_retrofit


def _cfg(run, decoder):
    _, workdir = run
    kept = json.loads((workdir / "settings.json").read_text())["config"]
    cfg = tiny_retrofit.experiment(decoder, kept["data"]["corpus"])
    cfg.model.cca_layers = tuple(kept["model"]["cca_layers"])
    return cfg, workdir


def _run_logits(cfg, params, inputs_BL, *read):
    return parameters.rebuild(cfg.model, params)(inputs_BL, *read)


def test_the_folder_is_the_decoder_and_its_retro(run, decoder, tmp_path, capsys):
    cfg, workdir = _cfg(run, decoder)
    out = tmp_path / "model"
    (decoder / "README.md").write_text("The decoder's own card.")
    export.write(cfg, workdir, workdir.parent / "database", str(out))
    assert f"the model is in {out}" in capsys.readouterr().out
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (out / name).read_bytes() == (decoder / name).read_bytes()
    assert (out / "README.decoder.md").read_text() == "The decoder's own card."
    job, _ = run
    _, params = job().run.restored()
    found = pretrained.load_retro(out)
    assert found.params.keys() == params.keys()
    assert all(np.array_equal(found.params[name], params[name]) for name in params)
    limits = json.loads((workdir / "reading.json").read_text())
    assert found.generation["max_distance"] == limits["max_distance"]
    assert found.generation["window_chunks"] == cfg.data.sequence_chunks
    database = job().database
    assert found.database["fingerprint"] == database.fingerprint
    tokenizer = Tokenizer.load(out)
    assert found.tokenizer["end_token"] == tokenizer.eod_id
    text = "The population of caf\u00e9"
    assert np.array_equal(tokenizer.encode(text), database.tokenizer.encode(text))
    with pytest.raises(FileExistsError, match="exists"):
        export.write(cfg, workdir, workdir, str(out))


def test_logits_of_the_reloaded_retrofit_are_the_runs(run, decoder, tmp_path):
    cfg, workdir = _cfg(run, decoder)
    export.write(cfg, workdir, tmp_path / "none", str(tmp_path / "model"))
    model = Retro.from_pretrained(tmp_path / "model")
    rng, length = np.random.default_rng(0), 2 * tiny_retrofit.CHUNK_LEN
    inputs_BL = jnp.asarray(rng.integers(1, 300, (1, length)), jnp.int32)
    shape = (1, 2, 2, tiny_retrofit.NEIGHBOUR_LEN)
    read = (
        jnp.asarray(rng.integers(1, 300, shape), jnp.int32),
        jnp.full(shape[:3], 20, jnp.int32),
    )
    # On one device, as those who load a folder have it.
    params = jax.tree.map(jnp.asarray, sharding.on_host(run[0]().run.restored()[1]))
    expected_BLV = _run_logits(cfg, params, inputs_BL, *read)
    np.testing.assert_array_equal(model(inputs_BL, *read), expected_BLV)
    assert pretrained.load_retro(tmp_path / "model").database == {}


def test_the_card_has_the_numbers_of_the_run(run, decoder, tmp_path):
    cfg, workdir = _cfg(run, decoder)
    export.write(cfg, workdir, workdir.parent / "database", str(tmp_path / "m"))
    card = (tmp_path / "m" / "README.md").read_text()
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    for values in results["conditions"].values():
        assert f"{values['bits_per_byte']:.4f}" in card
    assert run[0]().database.fingerprint in card
    assert card.startswith("---\nlibrary_name: retro-jax\n")
    assert str(workdir.parent) not in card  # where it lay is nobody's business


def test_what_can_not_be_exported_is_refused_in_one_line(run, decoder):
    cfg, workdir = _cfg(run, decoder)
    with pytest.raises(ValueError, match="--out=FOLDER"):
        export.write(cfg, workdir, workdir, "")


def test_the_tokenizer_of_a_gguf_is_written_as_others_read_it(tmp_path):
    path = tmp_path / "a.gguf"
    values = fast_tokenizers.gguf_values(fast_tokenizers.byte_level())
    path.write_bytes(fast_tokenizers.gguf(values))
    tokenizer = Tokenizer.load(path)
    files = export._tokenizer_files(tokenizer)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    again = Tokenizer.load(folder)
    text = "The capital of number 7 isn't it: caf\u00e9 <|im_start|>"
    assert np.array_equal(again.encode(text), tokenizer.encode(text))
    assert (again.eod_id, again.bos_id) == (tokenizer.eod_id, tokenizer.bos_id)
    assert again.chat_template == tokenizer.chat_template


def test_the_tokenizer_of_a_gguf_is_one_that_other_programs_read(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    values = fast_tokenizers.gguf_values(fast_tokenizers.byte_level())
    path = tmp_path / "decoder.gguf"
    path.write_bytes(fast_tokenizers.gguf(values))
    ours = Tokenizer.load(path)
    files = export._tokenizer_files(ours)
    theirs = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in fast_tokenizers.TEXT:
        ids = ours.encode(text).tolist()
        assert theirs.decode(ids, skip_special_tokens=False) == text
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<|endoftext|>"
