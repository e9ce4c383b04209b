"""What comes out of a compressed file is whole, and never more than fits."""

import lzma
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zstandard

from data_pipeline.text.readers import compression
from data_pipeline.text.readers.compression import DamagedFileError, LeftOutError
from tests.corpus_files import COMPRESS

SUFFIXES = [suffix for suffix in COMPRESS if suffix]


def write(tmp_path: Path, suffix: str, data: bytes) -> Path:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", COMPRESS)
def test_bytes_come_back(suffix: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 8, 3_000_000, np.uint8).tobytes()
    path = write(tmp_path, suffix, COMPRESS[suffix](data))
    assert b"".join(compression.chunks(path)) == data
    assert b"".join(compression.chunks(write(tmp_path, suffix, b""))) == b""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_frames_are_one_file(suffix: str, tmp_path: Path) -> None:
    frames = COMPRESS[suffix](b"first ") + COMPRESS[suffix](b"second")
    path = write(tmp_path, suffix, frames + b"\0" * 512)
    assert b"".join(compression.chunks(path)) == b"first second"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("fault", ["cut", "followed by noise", "noise"])
def test_damage_is_told_after_what_is_whole(
    suffix: str, fault: str, tmp_path: Path
) -> None:
    """Also if all of the file fits into one read."""
    data = np.random.default_rng(0).integers(97, 99, 200_000, np.uint8).tobytes()
    packed = COMPRESS[suffix](data)
    damaged = {
        "cut": packed[:-9],
        "followed by noise": packed + b"noise",
        "noise": b"noise" * 9,
    }[fault]
    got = b""
    with pytest.raises(DamagedFileError):
        for chunk in compression.chunks(write(tmp_path, suffix, damaged)):
            got += chunk
    assert data.startswith(got)
    if fault == "followed by noise":
        assert got == data
    elif fault == "cut" and suffix != ".bz2":  # one block, which is whole or nothing
        assert got


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_bomb_ends_early(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path, suffix, COMPRESS[suffix](b"a" * 100_000_000))
    tracemalloc.start()
    size_bytes = 0
    with pytest.raises(LeftOutError, match="expands more than"):
        for chunk in compression.chunks(path):
            size_bytes += len(chunk)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size_bytes < 60_000_000
    assert peak_bytes < 80_000_000


def test_long_windows_are_read(tmp_path: Path) -> None:
    """As `zstd --long=31` makes them; libzstd takes 128 MB by itself."""
    parameters = zstandard.ZstdCompressionParameters(
        window_log=30, write_content_size=0
    )
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = packed.compress(b"text") + packed.flush()
    assert zstandard.get_frame_parameters(frame).window_size == 1 << 30
    assert b"".join(compression.chunks(write(tmp_path, ".zst", frame))) == b"text"


def test_windows_beyond_the_limit_are_no_damage(tmp_path: Path) -> None:
    magic, descriptor, window = b"\x28\xb5\x2f\xfd", b"\0", bytes([31 << 3])  # 2 TB
    path = write(tmp_path, ".zst", magic + descriptor + window + b"\x21\0\0text")
    with pytest.raises(LeftOutError, match="window"):
        list(compression.chunks(path))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    packed = bytearray(lzma.compress(b"text", filters=filters, check=lzma.CHECK_NONE))
    assert b"".join(compression.chunks(write(tmp_path, ".xz", packed))) == b"text"
