"""From `Retro.__call__` to any product are at most ten frames of our own.

So whoever reads the model, or a traceback in it, soon stands at the arithmetic. A loop over
layers adds its function and its body.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import retro_jax
from retro_jax.model import parameters
from retro_jax.model.retro import Retro
from retro_jax.numerics import attention_products
from retro_jax.training.step import logits
from tests import tiny_model

MOST = 10
_OURS = str(Path(retro_jax.__file__).parent)


def _stack() -> Iterator[tuple[str, str]]:
    """File and function of our frames, the innermost first, up to `Retro.__call__`."""
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_OURS):
            yield Path(code.co_filename).name, code.co_qualname
        if code.co_qualname == Retro.__call__.__qualname__:
            return
        frame = frame.f_back
    yield "", ""  # not below the model, such as a gradient's backward pass


@pytest.fixture
def stacks(monkeypatch) -> list[list[tuple[str, str]]]:
    """Gets the frames above each product that is traced within `Retro.__call__`."""
    jax.clear_caches()  # what was traced before would not be traced again
    seen: list[list[tuple[str, str]]] = []

    def spied(function):
        def product(*args, **kwargs):
            frames = list(_stack())
            if frames[-1][0]:
                seen.append(frames)
            return function(*args, **kwargs)

        return product

    for name in ("einsum", "dot", "matmul"):
        monkeypatch.setattr(jnp, name, spied(getattr(jnp, name)))
    products = attention_products._float32
    monkeypatch.setattr(attention_products, "_float32", spied(products))
    return seen


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("graded", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"remat": "none"}, MOST),
        ({"remat": "dots"}, MOST),
        ({"remat": "none", "attention": "features"}, MOST),
        # A cross-attending layer and two plain ones, three times: a loop in a loop.
        ({"scan_layers": True, "depth": 9, "cca_layers": (3, 6, 9)}, MOST + 3),
    ],
    ids=["plain", "recomputed", "features", "scanned"],
)
def test_few_frames_lead_to_a_product(changes, most, graded, num_devices, stacks):
    cfg = tiny_model.config(chunk_len=64, neighbour_len=128, **changes)
    # Four chunks of 64: causal attention is cut into blocks.
    batch = tiny_model.batch(cfg, num_sequences=4, num_chunks=4)

    def loss(params, batch):
        return logits(cfg, params, batch).sum()

    mesh = tiny_model.mesh(4, 2) if num_devices == 8 else tiny_model.mesh(1, 1)
    shapes = parameters.named(parameters.skeleton(cfg))
    with jax.set_mesh(mesh):
        jax.eval_shape(jax.grad(loss) if graded else loss, shapes, batch)
    names = {name for frames in stacks for _, name in frames}
    for name in (
        "EncoderLayer.__call__",
        "DecoderLayer.attend",
        "DecoderLayer.retrieve",
        "DecoderLayer.feed_forward",
    ):
        assert name in names
    assert any(
        frames[-4][1:] == ("project",) for frames in stacks if len(frames) > 3
    )  # the read-out
    deepest = max(stacks, key=len)
    assert len(deepest) <= most, " < ".join(f"{file}:{name}" for file, name in deepest)
