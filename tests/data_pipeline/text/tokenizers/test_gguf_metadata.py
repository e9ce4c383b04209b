"""What a GGUF says of itself, and files that are cut, damaged or lie."""

import struct
from pathlib import Path

import pytest

from data_pipeline.text.tokenizers import gguf_metadata
from tests.fast_tokenizers import gguf

VALUES = {"a": "caf\u00e9", "b": 7, "c": ["x", ""], "d": [1, -2, 3], "e": True}


def _written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    return path


def test_values_that_are_wanted_come_back(tmp_path):
    path = _written(tmp_path, gguf(VALUES) + b"weights")
    assert gguf_metadata.read(path, VALUES) == VALUES
    assert gguf_metadata.read(path, {"b", "absent"}) == {"b": 7}


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = gguf(VALUES)
    for size in range(len(whole)):
        path = _written(tmp_path, whole[:size])
        with pytest.raises(ValueError, match="not a whole GGUF") as error:
            gguf_metadata.read(path, VALUES)
        assert str(error.value).startswith(str(path))


def _one(kind: int, rest: bytes, count: int = 1) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, count)
    return head + struct.pack("<Q", 1) + b"a" + struct.pack("<I", kind) + rest


@pytest.mark.parametrize(
    "content",
    [
        b"GGML" + bytes(40),
        b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62),
        _one(4, b"\0\0\0\0", count=2**40),
        _one(99, bytes(8)),
        _one(8, struct.pack("<Q", 2**63)),
        _one(8, struct.pack("<Q", 1) + b"\xff"),
        _one(9, struct.pack("<IQ", 5, 2**62)),
        _one(9, struct.pack("<IQ", 8, 2**62)),
        _one(9, struct.pack("<IQ", 9, 1)),
    ],
    ids=["magic", "version", "count", "more", "type", "long", "utf8"]
    + ["numbers", "texts", "nested"],
)
def test_a_lie_is_refused_at_once(content, tmp_path):
    with pytest.raises(ValueError, match="not a whole GGUF") as error:
        gguf_metadata.read(_written(tmp_path, content), {"a"})
    assert "\n" not in str(error.value)
