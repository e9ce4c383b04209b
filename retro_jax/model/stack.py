"""Runs a stack of layers, one after the other or as a loop over those that repeat.

A deep model compiles many times faster as a loop (`model.scan_layers`), and the compiler
can't spread one layer's work over another's. Parameters stay one array a layer, as they
are saved and named; the loop stacks copies of them in the activations' precision, which
is what a layer makes of them anyway.
"""

from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp

from retro_jax.devices import sharding


def run(layers: Sequence, step: Callable, hidden_BLD: jax.Array, *, scan: bool):
    """Applies `hidden = step(layer, hidden)` for each layer, in order.

    Args:
        layers: modules.
        scan: loop over groups of layers that repeat, and within a group over those that do:
            of a cross-attending layer and two plain ones, two layers are compiled, not three.
    """
    if not scan:
        for layer in layers:
            hidden_BLD = step(layer, hidden_BLD)
        return hidden_BLD
    start = 0
    for size, times in groups([jax.tree.structure(layer) for layer in layers]):
        group = layers[start : start + size * times]
        start += size * times
        if times == 1:
            hidden_BLD = run(group, step, hidden_BLD, scan=False)
        else:
            hidden_BLD = _loop(group, size, step, hidden_BLD)
    return hidden_BLD


def groups(kinds: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Cuts a sequence into repetitions: (length of what repeats, how many times).

    Greedy: what covers most from where the last one ended, the shortest of equals.
    """
    found, start = [], 0
    while start < len(kinds):
        size, times = max(
            ((size, _times(kinds[start:], size)) for size in range(1, len(kinds))),
            key=lambda group: (group[0] * group[1] if group[1] > 1 else 1, -group[0]),
            default=(1, 1),
        )
        found.append((size, times) if times > 1 else (1, 1))
        start += found[-1][0] * found[-1][1]
    return found


def _times(kinds: Sequence[Hashable], size: int) -> int:
    """How many times in a row the first `size` kinds stand at the beginning."""
    times = 0
    while kinds[times * size : (times + 1) * size] == kinds[:size]:
        times += 1
    return times


def _loop(layers: Sequence, size: int, step: Callable, hidden_BLD: jax.Array):
    stacked = [_stacked(layers[place::size], hidden_BLD.dtype) for place in range(size)]

    def body(hidden_BLD, group):
        return run(group, step, hidden_BLD, scan=True), None

    return jax.lax.scan(body, hidden_BLD, stacked)[0]


def _stacked(layers: Sequence, dtype):
    """One module whose arrays have one more axis in front, the layer."""

    def stack(path, *arrays):
        # Gains stay as they are: norms are computed in float32.
        if arrays[0].ndim > 1:
            arrays = tuple(array.astype(dtype) for array in arrays)
        return sharding.constrain_stacked(jnp.stack(arrays), path)

    return jax.tree_util.tree_map_with_path(stack, *layers)
