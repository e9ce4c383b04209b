"""Compiles a function once, for the arguments that it will always have."""

import ctypes
import sys

import jax


def compiled(function: jax.stages.Wrapped, *arguments) -> jax.stages.Compiled:
    """A jitted function, compiled for arrays like these (or `jax.ShapeDtypeStruct`s).

    Arguments of other shapes, dtypes or shardings raise a TypeError or ValueError then.
    The compiler leaves freed memory with the process, half a gigabyte for a model of 80M
    parameters; glibc is asked to give it back, so that the first step does not add to it.
    """
    found = function.lower(*arguments).compile()
    give_back_memory()
    return found


def give_back_memory() -> None:
    """Gives freed memory back to the system, where the C library can."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's, not musl's
        if trim is not None:
            trim(0)
