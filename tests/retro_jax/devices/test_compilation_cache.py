"""Compiled programs lie in the user's own folder, or nowhere."""

import os
from pathlib import Path

import jax
import pytest

from retro_jax.devices import compilation_cache


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A user's cache, for a process to which nobody has named another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_is_the_users_own(home):
    folder = compilation_cache.keep_compiled()
    assert folder.is_relative_to(home) and folder.stat().st_mode & 0o77 == 0
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_where_jax_was_told_to_keep_them_they_are_kept(home, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "told"))
    assert compilation_cache.keep_compiled() == tmp_path / "told"
    assert not list(home.glob("retro-jax"))


def test_jaxs_own_switch_turns_it_off(home):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert compilation_cache.keep_compiled() is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


def test_a_folder_that_others_may_write_to_is_not_used(home):
    folder = compilation_cache._folder()
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert compilation_cache.keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_a_home_that_can_not_be_written_to_costs_nothing_else(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert compilation_cache.keep_compiled() is None


def test_the_oldest_programs_make_room(home, monkeypatch):
    folder = compilation_cache._folder()
    folder.mkdir(parents=True, mode=0o700)
    for number in range(4):
        path = folder / f"program-{number}"
        path.write_bytes(b"x" * 10)
        os.utime(path, (number, number))
    monkeypatch.setattr(compilation_cache, "_MOST_BYTES", 25)
    assert compilation_cache.keep_compiled() == folder
    assert {path.name for path in folder.iterdir()} == {"program-2", "program-3"}
