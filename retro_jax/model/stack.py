"""How layers are run: one by one or in loops, with activations kept or recomputed.

A deep model compiles many times faster as a loop (`model.scan_layers`), and the compiler
can't spread one layer's work over another's. Parameters stay one array a layer, as they
are saved and named; a loop stacks copies of them in the activations' precision, which is
what a layer makes of them anyway.
"""

import functools
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp

from retro_jax.devices import sharding


def recomputed(step: Callable) -> Callable:
    """Decorates a step of a layer: backward recomputes what `layer.cfg.remat` says.

    'dots' keeps the products with parameters, which are most of the work; 'full' keeps
    nothing but what goes into the step. A step, not a layer, is recomputed at a time, so
    that backward never holds the insides of two.
    """

    @functools.wraps(step)
    def run(layer, *inputs):
        policies = jax.checkpoint_policies
        if layer.cfg.remat == "none":
            return step(layer, *inputs)
        keeps = policies.nothing_saveable
        if layer.cfg.remat == "dots":
            keeps = policies.dots_with_no_batch_dims_saveable
        return jax.checkpoint(step, policy=keeps)(layer, *inputs)

    return run


def loops(layers: Sequence, *, scan: bool) -> list[Callable]:
    """Gives what is called as `hidden = part(hidden, *inputs)`, in order, to run all layers.

    Args:
        layers: modules that are called so.
        scan: False gives the layers themselves. True gives loops over groups of layers that
            repeat, and within a group over those that do: of a cross-attending layer and
            two plain ones, two layers are compiled, not three.
    """
    if not scan:
        return list(layers)
    parts: list[Callable] = []
    start = 0
    for size, times in groups([jax.tree.structure(layer) for layer in layers]):
        group = layers[start : start + size * times]
        start += size * times
        parts += group if times == 1 else [functools.partial(_loop, group, size)]
    return parts


def groups(kinds: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Cuts a sequence into repetitions: (length of what repeats, how many times).

    Greedy: each is the one that covers most from where the last one ended, the shortest of
    equals.
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
    """Counts how many times in a row the first `size` kinds stand at the beginning."""
    times = 0
    while kinds[times * size : (times + 1) * size] == kinds[:size]:
        times += 1
    return times


def _loop(layers: Sequence, size: int, hidden_BLD: jax.Array, *inputs):
    stacked = [_stacked(layers[place::size], hidden_BLD.dtype) for place in range(size)]

    def body(hidden_BLD, group):
        for part in loops(group, scan=True):
            hidden_BLD = part(hidden_BLD, *inputs)
        return hidden_BLD, None

    return jax.lax.scan(body, hidden_BLD, stacked)[0]


def _stacked(layers: Sequence, dtype):
    """Makes one module whose arrays have one more axis in front, the layer."""

    def stack(path, *arrays):
        # Gains stay as they are: norms are computed in float32.
        if arrays[0].ndim > 1:
            arrays = tuple(array.astype(dtype) for array in arrays)
        return sharding.constrain_stacked(jnp.stack(arrays), path)

    return jax.tree_util.tree_map_with_path(stack, *layers)
