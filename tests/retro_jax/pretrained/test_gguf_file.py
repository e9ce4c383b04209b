"""GGUF files, written by the library of that name; damaged ones: test_bad_input."""

import gguf
import numpy as np
import pytest

from retro_jax.pretrained import gguf_file, loading
from tests.retro_jax.pretrained.tiny_decoders import CONFIGS, write_folder, write_gguf

_WIDE = {"intermediate_size": 64}  # blocks of quantisations have 32 numbers


@pytest.mark.parametrize("form", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantised_matrices_come_back_as_near_as_their_form_is(form, tmp_path):
    folder = write_folder(tmp_path / "hf", CONFIGS["llama"] | _WIDE)
    exact = loading.load(folder).params
    loaded = loading.load(write_gguf(tmp_path / "m.gguf", folder, form)).params
    for name, array in exact.items():
        error = np.abs(loaded[name] - array).max() / np.abs(array).max()
        if array.ndim == 1:  # which are never quantised
            assert error == 0
        else:
            assert 0 < error < (0.01 if form in ("F16", "BF16", "Q8_0") else 0.15)


def test_the_header_is_what_the_library_reads(tmp_path):
    folder = write_folder(tmp_path / "hf", CONFIGS["qwen3"] | _WIDE)
    path = write_gguf(tmp_path / "m.gguf", folder, "Q8_0", general__alignment=64)
    metadata, tensors = gguf_file.read(path)
    reader = gguf.GGUFReader(path)
    assert {t.name: t.data_offset for t in reader.tensors} == {
        name: tensor.offset for name, tensor in tensors.items()
    }
    assert {t.name: t.n_bytes for t in reader.tensors} == {
        name: tensor.num_bytes for name, tensor in tensors.items()
    }
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "tokenizer.ggml.tokens":
            assert metadata[name] == field.contents()
    assert metadata["tokenizer.ggml.tokens"].count == 96


def _with_frequencies(path, folder, divisors):
    """A file as llama.cpp writes it for Llama 3: divisors of frequencies, no settings."""
    writer_class = gguf.GGUFWriter

    class Writer(writer_class):
        def write_header_to_file(self, *args, **kwargs):
            self.add_tensor("rope_freqs.weight", np.asarray(divisors, np.float32))
            super().write_header_to_file(*args, **kwargs)

    gguf.GGUFWriter = Writer
    try:
        return write_gguf(path, folder)
    finally:
        gguf.GGUFWriter = writer_class


def test_the_scaling_of_llama3_is_known_by_its_divisors(tmp_path):
    scaling = CONFIGS["llama3"]["rope_scaling"] | {
        "original_max_position_embeddings": 8192
    }
    config = CONFIGS["llama3"] | {"rope_scaling": scaling, "rope_theta": 5e5}
    folder = write_folder(tmp_path / "hf", config)
    # Wavelengths of the four frequencies: 6, 167, 4443 (between the two), 118143.
    turns = 8192 / (2 * np.pi * 5e5 ** (np.arange(4) / 4))
    smooth = np.clip((turns - 1) / 3, 0, 1)
    divisors = 1 / ((1 - smooth) / 8 + smooth)
    assert divisors[0] == 1 and 1 < divisors[2] < 8 and divisors[3] == 8
    model = loading.load(_with_frequencies(tmp_path / "m", folder, divisors)).model
    assert model == loading.load(folder).model
    assert model.rotary_scaling == (8.0, 1.0, 4.0, 8192.0)
    plain = loading.load(_with_frequencies(tmp_path / "n", folder, np.ones(4))).model
    assert plain.rotary_scaling is None
    for wrong in (divisors[::-1], divisors * 1.01, [1, 1, np.nan, 8]):
        with pytest.raises(ValueError, match="is not the scaling of Llama 3"):
            loading.load(_with_frequencies(tmp_path / "o", folder, wrong))
