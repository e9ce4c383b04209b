"""Reading of tensors by blocks: placing, transposing, rounding and refusing."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.pretrained import stored_tensors
from retro_jax.pretrained.stored_tensors import StoredTensor, read_into


def _stored(path, values, form, offset=3):
    path.write_bytes(b"abc" + values.tobytes() + b"tail")
    return StoredTensor(
        path=path,
        offset=offset,
        shape=values.shape,
        form=form,
        row_bytes=values.shape[-1] * values.itemsize,
    )


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("transposed", [True, False])
def test_blocks_make_up_the_tensor(rows, transposed, tmp_path, monkeypatch):
    values = np.arange(35, dtype=np.float32).reshape(7, 5)
    stored = _stored(tmp_path / "file", values, "F32")
    monkeypatch.setattr(stored_tensors, "_BLOCK_NUMBERS", rows * 5)
    places, digest = np.random.default_rng(0).permutation(7), hashlib.sha256()
    kept = np.zeros((5, 7) if transposed else (7, 5), np.float32)
    read_into(kept, stored, transposed=transposed, places=places, update=digest.update)
    np.testing.assert_array_equal((kept.T if transposed else kept)[places], values)
    assert digest.hexdigest() == hashlib.sha256(values.tobytes()).hexdigest()


def test_bfloat16_becomes_float32_exactly(tmp_path):
    bits = np.arange(2**16, dtype=np.uint16)
    finite = bits[(bits & 0x7F80) != 0x7F80]  # an exponent of ones alone is not
    values = finite.view(jnp.bfloat16).reshape(2, -1)
    kept = np.zeros(values.shape, np.float32)
    read_into(kept, _stored(tmp_path / "f", values, "BF16"), transposed=False)
    np.testing.assert_array_equal(kept, values.astype(np.float32))
    assert len(values[0]) > 30_000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("asked", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("form", "dtype"),
    [("F32", np.float32), ("F16", np.float16), ("BF16", jnp.bfloat16)],
)
def test_numbers_that_are_not_finite_are_refused(bad, asked, form, dtype, tmp_path):
    values = np.ones((4, 6), dtype)
    kept = np.zeros((4, 6), asked)
    read_into(kept, _stored(tmp_path / "good", values, form), transposed=False)
    values[2, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        read_into(kept, _stored(tmp_path / "bad", values, form), transposed=False)


def test_large_numbers_are_finite_though_their_sum_is_not(tmp_path):
    values = np.full((2, 8), 3e38, np.float32)
    kept = np.zeros((2, 8), np.float32)
    read_into(kept, _stored(tmp_path / "file", values, "F32"), transposed=False)
    np.testing.assert_array_equal(kept, values)


def test_a_file_that_was_cut_since_is_named(tmp_path):
    values = np.ones((4, 6), np.float32)
    stored = _stored(tmp_path / "file", values, "F32", offset=12)
    with pytest.raises(ValueError, match="file ends in the middle"):
        read_into(np.zeros((4, 6), np.float32), stored, transposed=False)
