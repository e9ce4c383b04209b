"""A run's model becomes a folder: the decoder's own files, its CCA, its limits."""

import json

import numpy as np
import pytest

from data_pipeline.text.tokenizer import Tokenizer
from experiments.configs import tiny
from experiments.jobs import export
from retro_jax import pretrained
from tests import fast_tokenizers, tiny_retrofit


def _cfg(run, decoder):
    _, workdir = run
    kept = json.loads((workdir / "settings.json").read_text())["config"]
    cfg = tiny_retrofit.experiment(decoder, kept["data"]["corpus"])
    cfg.model.cca_layers = tuple(kept["model"]["cca_layers"])
    return cfg, workdir


def test_the_folder_is_the_decoder_and_its_retro(run, decoder, tmp_path, capsys):
    cfg, workdir = _cfg(run, decoder)
    out = tmp_path / "model"
    export.write(cfg, workdir, str(out))
    assert f"the model is in {out}" in capsys.readouterr().out
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (out / name).read_bytes() == (decoder / name).read_bytes()
    limits = (workdir / "reading.json").read_text()
    assert json.loads((out / "reading.json").read_text()) == json.loads(limits)
    job, _ = run
    _, params = job()._parameters()
    read = pretrained.load_retro(out).params
    assert read.keys() == params.keys()
    assert all(np.array_equal(read[name], params[name]) for name in params)
    with pytest.raises(FileExistsError, match="exists"):
        export.write(cfg, workdir, str(out))


def test_what_can_not_be_exported_is_refused_in_one_line(run, decoder, tmp_path):
    cfg, workdir = _cfg(run, decoder)
    for config, out, said in (
        (cfg, "", "--out=FOLDER"),
        (tiny.get_config(), str(tmp_path / "new"), "a model from scratch"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            export.write(config, workdir, out)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


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
