"""Files of safetensors, beside the library of that name; damaged ones: test_bad_input."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.pretrained import safetensors_file

_ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2], jnp.bfloat16),
    "empty": np.zeros((0, 3), np.float32),
    "c": np.arange(3, dtype=np.float32).reshape(3, 1)[::-1],
}


def _write(path):
    safetensors_file.write(
        path,
        [
            (n, a.shape, a.dtype, functools.partial(np.asarray, a))
            for n, a in _ARRAYS.items()
        ],
    )
    return path


def test_what_is_written_is_found(tmp_path):
    found = safetensors_file.stored_in(_write(tmp_path / "w.safetensors"))
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: array.shape for name, array in _ARRAYS.items()
    }
    for name, tensor in found.items():
        content = b"".join(block.tobytes() for _, block in tensor.blocks())
        assert content == _ARRAYS[name].tobytes()


def test_the_library_reads_what_is_written(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    loaded = numpy.load_file(_write(tmp_path / "w.safetensors"))
    for name, array in _ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_what_the_library_writes_is_found(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {name: np.ascontiguousarray(array) for name, array in _ARRAYS.items()}
    numpy.save_file(arrays, tmp_path / "w.safetensors", metadata={"format": "pt"})
    found = safetensors_file.stored_in(tmp_path / "w.safetensors")
    assert {name: tensor.form for name, tensor in found.items()} == {
        "a": "F32",
        "b": "BF16",
        "c": "F32",
        "empty": "F32",
    }
