"""Files of safetensors: a header in JSON, then the tensors' bytes without a gap.

The header is looked at before anything is read: tensors lie one behind the other, each as
long as its shape says, from the header's end to the file's.
Source: https://huggingface.co/docs/safetensors (the format).
"""

import json
import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeGuard

import jax.numpy as jnp
import numpy as np

from retro_jax.pretrained.stored_tensors import PLAIN_FORMS, StoredTensor

_MAX_HEADER_BYTES = 2**24  # some thousand tensors take a hundredth of it
_MAX_SIZE = 2**40  # of an axis, so that products stay numbers
_FORMS = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(jnp.bfloat16): "BF16",
}


def stored_in(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name, none of them read.

    Raises:
        ValueError: in one line, naming the file, if its header is not to be believed.
        OSError: if it can't be opened.
    """
    with open(path, "rb") as file:
        file_bytes = path.stat().st_size
        first = file.read(8)
        header_bytes = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= header_bytes <= min(file_bytes - 8, _MAX_HEADER_BYTES):
            raise ValueError(
                f"{path} is no file of safetensors, or cut: it has {file_bytes} bytes, "
                f"its header claims {header_bytes}"
            )
        header = file.read(header_bytes)
    start = 8 + header_bytes
    found = {
        name: _stored(path, name, entry, start)
        for name, entry in _entries(path, header).items()
        if name != "__metadata__"
    }
    end = start
    for name, tensor in sorted(found.items(), key=lambda item: item[1].offset):
        if tensor.offset != end:
            what = "overlaps" if tensor.offset < end else "leaves a gap behind"
            raise ValueError(f"{path}: tensor {name} {what} the one before it")
        end += tensor.num_bytes
    if end != file_bytes:
        what = "is cut" if end > file_bytes else "has bytes of no tensor"
        raise ValueError(f"{path} {what}: {file_bytes} bytes, its tensors end at {end}")
    return found


def _entries(path: Path, header: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError):
        entries = None
    if isinstance(entries, dict):
        return entries
    raise ValueError(f"{path} is no file of safetensors: its header is no JSON object")


def _stored(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    """One entry of a header, if it makes sense."""
    known = entry if isinstance(entry, dict) else {}
    form, shape = known.get("dtype"), known.get("shape")
    places = known.get("data_offsets")
    if not (_are_sizes(shape) and _are_sizes(places) and len(places) == 2):
        raise ValueError(f"{path}: tensor {name:.80} has no proper shape and offsets")
    if not isinstance(form, str) or form not in PLAIN_FORMS:
        raise ValueError(
            f"{path}: tensor {name:.80} is of dtype {form!r:.20}, which is not read; "
            f"give weights of {', '.join(PLAIN_FORMS)}"
        )
    item_bytes = PLAIN_FORMS[form].itemsize
    if places[1] - places[0] != math.prod(shape) * item_bytes:
        raise ValueError(
            f"{path}: tensor {name:.80} of shape {tuple(shape)} and dtype {form} has "
            f"{places[1] - places[0]} bytes"
        )
    return StoredTensor(
        path=path,
        offset=start + places[0],
        shape=tuple(shape),
        form=form,
        row_bytes=(shape[-1] if shape else 1) * item_bytes,
    )


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(values, list)
        and len(values) <= 8
        and all(type(value) is int and 0 <= value <= _MAX_SIZE for value in values)
    )


def write(
    path: Path,
    tensors: Iterable[tuple[str, tuple[int, ...], np.dtype, Callable[[], Any]]],
) -> None:
    """Writes a file of floats; each array is made when its turn comes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end, arrays = 0, []
    for name, shape, dtype, array in tensors:
        first, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _FORMS[dtype],
            "shape": list(shape),
            "data_offsets": [first, end],
        }
        arrays.append(array)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the first tensor
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays:
            file.write(np.ascontiguousarray(array()).view(np.uint8).data)
