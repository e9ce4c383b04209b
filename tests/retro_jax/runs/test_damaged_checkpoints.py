"""What a checkpoint survives: kill -9, flipped bits, lost files, full and read-only disks."""

import contextlib
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.runs.checkpoints import Checkpoints, abstract
from tests import killed_saves

RUN = {"data": "abc", "seed": 1}


def _state(step: int):
    """Random numbers, which a compressor leaves as they are."""
    values_DF = np.random.default_rng(step).standard_normal((64, 64))
    return {
        "params": {"w_in_DF": jnp.asarray(values_DF, jnp.float32)},
        "optimizer": {"w_in_DF": jnp.asarray(values_DF.T, jnp.bfloat16)},
        "count": jnp.int32(step),
    }


def _wanted():
    shapes = jax.eval_shape(lambda: _state(0))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return abstract(shapes, jax.tree.map(lambda _: one, shapes))


def _restored(folder: Path) -> int:
    """The step that is restored, after every number of it has been compared."""
    with contextlib.closing(Checkpoints(folder, keep=2)) as keeper:
        step, got = keeper.restore(_wanted(), RUN)
    jax.tree.map(np.testing.assert_array_equal, got, _state(step))
    return step


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with steps 1 and 2; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.closing(Checkpoints(folder, keep=2)) as keeper:
        for step in (1, 2):
            keeper.save(step, _state(step), RUN | {"step": step})
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(whole, tmp_path / "checkpoints")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _array_data(folder: Path) -> Path:
    return max(_files(folder / "2"), key=lambda path: path.stat().st_size)


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_in_an_array_is_named_and_the_step_before_is_used(
    folder, capsys, seed
):
    """Orbax itself would give a wrong number back without a word."""
    _flip(_array_data(folder), random.Random(seed))
    assert _restored(folder) == 1
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("the checkpoint of step 2: array ")
    assert "w_in_DF" in said


def test_a_flipped_bit_anywhere_is_seen_or_does_no_harm(whole, folder):
    rng = random.Random(0)
    files = [path for path in _files(folder / "2") if path.stat().st_size]
    steps = []
    for path in files:
        content = path.read_bytes()
        _flip(path, rng)
        steps.append(_restored(folder))  # and compared
        path.write_bytes(content)
    assert _restored(folder) == 2
    assert set(steps) == {1, 2}, "some flips hit what is not needed, some do not"


def test_a_flipped_bit_in_what_it_belongs_to_is_no_other_run(folder, capsys):
    path = folder / "2" / "run" / "metadata"
    path.write_text(path.read_text().replace("abc", "abb"))
    assert _restored(folder) == 1
    assert "what it says of its run" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut short", "missing", "empty"])
def test_a_damaged_file_is_told_in_a_line_and_the_step_before_is_used(
    folder, capfd, damage
):
    path = _array_data(folder)
    if damage == "missing":
        path.unlink()
    else:
        size = path.stat().st_size
        os.truncate(path, size // 2 if damage == "cut short" else 0)
    assert _restored(folder) == 1
    said, errors = capfd.readouterr()
    assert said.startswith("the checkpoint of step 2: array ") and "w_in_DF" in said
    assert said.count("\n") == 1 and len(said) < 400 and "Traceback" not in errors


@pytest.mark.parametrize("damage", ["flipped", "cut short"])
def test_a_part_is_also_read_from_the_newest_whole_one(folder, capsys, damage):
    """As evaluation and retrofitting do, which leave the optimizer's slots."""
    path = _array_data(folder)
    if damage == "flipped":
        _flip(path, random.Random(0))
    else:
        os.truncate(path, path.stat().st_size // 2)
    wanted = {"params": _wanted()["params"]}
    with contextlib.closing(Checkpoints(folder, keep=None)) as keeper:
        step, got = keeper.restore(wanted, RUN, part=True)
        assert keeper.run_of(step) == RUN | {"step": 1}
    assert step == 1 and got.keys() == {"params"}
    expected = _state(1)["params"]
    jax.tree.map(np.testing.assert_array_equal, got["params"], expected)
    assert "w_in_DF" in capsys.readouterr().out


@pytest.mark.parametrize("item", ["state", "run", "fingerprints"])
def test_a_lost_part_is_damage(folder, item):
    shutil.rmtree(folder / "2" / item)
    assert _restored(folder) == 1


def test_a_step_asked_for_by_number_is_not_replaced_by_another(folder):
    _flip(_array_data(folder), random.Random(0))
    with contextlib.closing(Checkpoints(folder, keep=2)) as keeper:
        with pytest.raises(ValueError, match=r"no whole checkpoint.*step 2: array"):
            keeper.restore(_wanted(), RUN, step=2)
        assert keeper.restore(_wanted(), RUN, step=1)[0] == 1


def test_without_a_whole_one_every_step_is_named(folder):
    for step in "12":
        data = max(_files(folder / step), key=lambda path: path.stat().st_size)
        os.truncate(data, 100)
    with pytest.raises(ValueError, match=r"no whole.*step 2: .*step 1: .*--workdir"):
        _restored(folder)
    assert {"1", "2"} <= {path.name for path in folder.iterdir()}


def test_damaged_steps_are_saved_again_and_the_old_ones_kept_aside(folder):
    path = _array_data(folder)
    _flip(path, random.Random(0))
    damaged = path.read_bytes()
    for step in (2, 3):
        with contextlib.closing(Checkpoints(folder, keep=2)) as keeper:
            assert keeper.restore(_wanted(), RUN)[0] == step - 1
            assert keeper.latest_step() == 2  # who only reads leaves it where it is
            keeper.save(step, _state(step), RUN | {"step": step})
    assert _restored(folder) == 3
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", "damaged-2"]
    aside = folder / "damaged-2" / path.relative_to(folder / "2")
    assert aside.read_bytes() == damaged


def test_only_who_saves_removes_what_a_killed_save_left(folder):
    unfinished = folder / "3.orbax-checkpoint-tmp"
    shutil.copytree(folder / "2", unfinished)
    assert _restored(folder) == 2
    assert unfinished.exists()  # another process might be writing it
    with contextlib.closing(Checkpoints(folder, keep=2)) as keeper:
        keeper.save(3, _state(3), RUN | {"step": 3})
    assert _restored(folder) == 3
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_a_state_that_is_not_finite_is_not_saved(folder):
    state = _state(3)
    state["optimizer"]["w_in_DF"] = state["optimizer"]["w_in_DF"].at[3, 4].set(jnp.inf)
    keeper = Checkpoints(folder, keep=2)
    with (
        contextlib.closing(keeper),
        pytest.raises(FloatingPointError, match="optimizer/w_in_DF .*step 3"),
    ):
        keeper.save(3, state, RUN)
    assert _restored(folder) == 2


def test_killed_saves_lose_no_saved_step_and_leave_no_broken_one(tmp_path):
    """Killed -9 six times at random moments; each child compares what it restores."""
    kills = 6
    command = [sys.executable, "-m", "tests.killed_saves", str(tmp_path), "7"]
    done = subprocess.run(
        [*command, str(kills)], capture_output=True, text=True, timeout=120, check=False
    )
    said = done.stdout.splitlines()
    assert said.count("killed") == kills and "failed" not in said, done.stderr
    saved = in_the_middle = 0
    for line, following in zip(said, [*said[1:], ""], strict=True):
        what, _, step = line.partition(" ")
        if what == "saved":
            saved = int(step)
        elif what == "restored":
            # A save may have been whole before the child could say so.
            assert saved <= int(step) <= saved + 1, said
            saved = int(step)
        in_the_middle += what == "started" and following == "killed"
    assert in_the_middle >= kills // 2
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as keeper:
        assert killed_saves.restored(keeper) >= saved


@contextlib.contextmanager
def _file_size_limit(size_bytes: int):
    """Writes past it fail as on a full disk; so for root too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _by_checking(keeper: Checkpoints) -> None:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        keeper.check()
        time.sleep(0.01)


_NOTICING = {
    "check": _by_checking,
    "wait": Checkpoints.wait,
    "close": Checkpoints.close,
    "the next save": lambda keeper: keeper.save(4, _state(4), RUN),
}


@pytest.mark.parametrize("how", _NOTICING)
def test_a_save_that_fails_in_the_background_is_noticed(folder, how):
    keeper = Checkpoints(folder, keep=2)
    with contextlib.closing(keeper), _file_size_limit(8000):
        keeper.save(3, _state(3), RUN)
        with pytest.raises(OSError, match=r"File too large\. Step 2 is whole"):
            _NOTICING[how](keeper)
    assert _restored(folder) == 2
    with contextlib.closing(
        Checkpoints(folder, keep=2)
    ) as keeper:  # there is space again
        keeper.save(3, _state(3), RUN | {"step": 3})
    assert _restored(folder) == 3


@pytest.fixture
def small_disk(tmp_path):
    """Mounts 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def _remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def _fill(disk: Path, left_bytes: int) -> None:
    free_bytes = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(bytes(free_bytes - left_bytes))
    assert shutil.disk_usage(disk).free == left_bytes


# Orbax leaves what it had still to do behind as coroutines.
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.parametrize(
    ("broken", "left_bytes", "expected"),
    [
        ("", 0, "No space left on device"),
        ("", 32_768, "No space left on device"),
        ("ro", 0, "Read-only file system"),
    ],
)
def test_a_full_or_read_only_disk_is_named_and_gone_on_from(
    small_disk, broken, left_bytes, expected
):
    folder = small_disk / "checkpoints"
    with contextlib.closing(Checkpoints(folder, keep=2)) as keeper:
        keeper.save(1, _state(1), RUN)
    if broken:
        _remount(small_disk, broken)
    else:
        _fill(small_disk, left_bytes)
    keeper = Checkpoints(folder, keep=2)
    with pytest.raises(OSError, match=expected), contextlib.closing(keeper):
        keeper.save(2, _state(2), RUN)
    assert _restored(folder) == 1
    _remount(small_disk, "rw,size=2m")
    with contextlib.closing(Checkpoints(folder, keep=2)) as keeper:
        keeper.save(2, _state(2), RUN)
    assert _restored(folder) == 2
