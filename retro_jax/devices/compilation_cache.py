"""Compiled programs that are kept, so that a run that goes on need not compile them again.

They are machine code that will be run, so they lie in the user's own cache and never in the
folder of a run, which may come from anybody. JAX's own variables come first:
JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false has none.
"""

import contextlib
import hashlib
import os
import platform
import stat
from pathlib import Path

import jax

_MOST_BYTES = 4 * 10**9  # older programs make room
_LEAST_S = 0.3  # of compiling: what takes less is not kept


def keep_compiled() -> Path | None:
    """Keeps what this process compiles; gives the folder, None if there is none to use."""
    given = jax.config.values["jax_compilation_cache_dir"]
    if given is not None:  # the user has said where
        return Path(given)
    if not jax.config.values["jax_enable_compilation_cache"]:
        return None
    try:
        folder = _folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_own(folder):
            return None
        _make_room(folder)
    except (OSError, RuntimeError):  # no home to write to: all is compiled, as ever
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_S)
    return folder


def _folder() -> Path:
    """The folder for this kind of processor: a home may be shared by several kinds."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    told = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told += next((line for line in lines if line.startswith("flags")), "")
    kind = hashlib.sha256(told.encode()).hexdigest()[:12]
    return Path(home) / "retro-jax" / f"compiled-{kind}"


def _is_own(folder: Path) -> bool:
    """Whether nobody but this user can put programs there."""
    found = folder.stat()
    others = stat.S_IWGRP | stat.S_IWOTH
    return found.st_uid == os.getuid() and not found.st_mode & others


def _make_room(folder: Path) -> None:
    """Removes the programs that were kept first, until the rest is small enough."""
    found = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
    size = sum(told.st_size for _, told in found)
    for path, told in sorted(found, key=lambda one: one[1].st_mtime):
        if size <= _MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        size -= told.st_size
