"""What is left of a failed restore is not printed; all else still is."""

import asyncio
import gc
import logging
import subprocess
import sys
import types

import pytest

from retro_jax.runs import quiet_orbax


@pytest.fixture
def complaints(monkeypatch):
    """What comes through to the hook that was there before."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    quiet_orbax.silence()
    quiet_orbax.silence()
    return seen


async def _read():
    """Waits forever, and can't be closed without a complaint."""
    try:
        await asyncio.Event().wait()
    except BaseException as error:
        raise ValueError("not read") from error


def _leave_behind(filename: str) -> None:
    """As Orbax does: a loop is closed over a read that is under way."""

    code = _read.__code__.replace(co_filename=filename)
    read = types.FunctionType(code, globals())

    async def begin():
        asyncio.ensure_future(read())
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    del loop
    gc.collect()


@pytest.mark.parametrize("filename, count", [("orbax/read.py", 0), ("mine.py", 1)])
def test_only_what_orbax_left_is_silent(complaints, caplog, filename, count):
    _leave_behind(filename)
    assert [str(one.exc_value) for one in complaints] == ["not read"] * count
    logged = [record for record in caplog.records if record.name == "asyncio"]
    assert len(logged) == count, "task was destroyed but it is pending"


def test_what_a_closed_loop_says_is_an_echo(complaints):
    late = RuntimeError("Event loop is closed")
    sys.unraisablehook(types.SimpleNamespace(object=None, exc_value=late))
    sys.unraisablehook(
        types.SimpleNamespace(object=None, exc_value=RuntimeError("other"))
    )
    assert [str(one.exc_value) for one in complaints] == ["other"]


def test_other_messages_of_asyncio_are_logged(complaints, caplog):
    logging.getLogger("asyncio").error("Executing took 3 seconds")
    assert caplog.messages == ["Executing took 3 seconds"]


def test_it_prints_a_traceback_otherwise():
    """What this is for: without it Python writes these lines to the terminal."""
    program = "from tests.retro_jax.runs.test_quiet_orbax import _leave_behind as l; {}; l('orbax/a.py')"
    silence = "from retro_jax.runs import quiet_orbax; quiet_orbax.silence()"
    errors = [
        subprocess.run(
            [sys.executable, "-c", program.format(first)],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        for first in ("pass", silence)
    ]
    assert "Traceback" in errors[0]
    assert errors[1] == ""
