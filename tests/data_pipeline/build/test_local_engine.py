"""Several processes of this machine make what one makes, and none outlives the build."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.build import local_engine
from data_pipeline.build.engine import run_stage
from data_pipeline.build.local_engine import LocalEngine
from data_pipeline.storage import costs
from tests import sent_work
from tests.tiny_corpus import contents

_SHARDS = {f"{number:02d}": 1 for number in range(8)}
_WRITE = sent_work.Write("text")


@pytest.fixture
def always_spread(monkeypatch):
    """Others help from the second shard on."""
    monkeypatch.setattr(local_engine, "_LONG_S", -1.0)


@pytest.fixture
def started(monkeypatch):
    """The processes that were started."""
    found = []
    popen = subprocess.Popen

    def start(*args, **kwargs):
        found.append(popen(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(local_engine.subprocess, "Popen", start)
    return found


def made_by(engine, folder, work, resource="core"):
    run_stage(folder, {}, {}, _SHARDS, work, engine, resource=resource)
    return contents(folder)


@pytest.mark.usefixtures("always_spread")
def test_processes_make_what_one_makes(tmp_path, started, capsys):
    one = made_by(LocalEngine(workers=1), tmp_path / "one" / "stage", _WRITE)
    assert not started
    several = made_by(LocalEngine(workers=3), tmp_path / "several" / "stage", _WRITE)
    assert several == one
    assert len(started) == 3
    assert all(process.returncode is not None for process in started)
    said = capsys.readouterr().out.splitlines()
    assert sorted(line for line in said if "made" in line) == sorted(
        f"made {shard}" for shard in [*_SHARDS, *_SHARDS]
    )
    recorded = [cost.shard for cost in costs.read(tmp_path / "several")]
    assert sorted(recorded) == list(_SHARDS)


def test_others_help_only_where_it_takes_long(tmp_path, started, monkeypatch):
    made_by(LocalEngine(workers=3), tmp_path / "short", _WRITE)
    monkeypatch.setattr(local_engine, "_LONG_S", -1.0)
    made_by(LocalEngine(workers=3), tmp_path / "all-cores", _WRITE, resource="cores")
    here = []

    def cannot_be_sent(shard, made):
        (made / "file").write_text(shard)
        here.append(shard)
        yield 1

    made_by(LocalEngine(workers=3), tmp_path / "local", cannot_be_sent)
    assert here == list(_SHARDS)
    assert not started


@pytest.mark.usefixtures("always_spread")
@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (sent_work.Refuse("03"), ValueError, "^shard 03 is wrong: write it again"),
        (sent_work.RaiseCustomError(), ValueError, "^05: as it is"),
        (sent_work.RaiseKeyError(), KeyError, "^'05'"),
    ],
)
def test_what_the_work_raises_is_raised_here(tmp_path, started, work, error, message):
    with pytest.raises(error, match=message):
        made_by(LocalEngine(workers=2), tmp_path / "stage", work)
    assert all(process.returncode is not None for process in started)
    assert not (tmp_path / "stage" / "stage.json").exists()


@pytest.mark.usefixtures("always_spread")
def test_a_process_that_is_lost_is_named_and_the_build_goes_on(tmp_path):
    folder = tmp_path / "stage"
    work = sent_work.KilledAfter("00")
    with pytest.raises(
        ValueError, match=r"that made .*/stage/0[12] was lost \(exit status -9; out of"
    ):
        made_by(LocalEngine(workers=2), folder, work)
    expected = made_by(LocalEngine(workers=1), tmp_path / "other" / "stage", _WRITE)
    assert made_by(LocalEngine(workers=2), folder, _WRITE) == expected


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_nobody_outlives_a_build_that_ends(tmp_path, sent):
    marks = tmp_path / "marks"
    marks.mkdir()
    code = (
        "import signal\n"
        "from pathlib import Path\n"
        "from data_pipeline.build import local_engine\n"
        "from data_pipeline.build.engine import run_stage\n"
        "from tests import sent_work\n"
        # Who runs the tests in the background may have it ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "local_engine._LONG_S = -1.0\n"
        f"work = sent_work.Slow(Path({str(marks)!r}))\n"
        "engine = local_engine.LocalEngine(workers=2)\n"
        f"run_stage(Path({str(tmp_path / 'stage')!r}), {{}}, {{}}, {_SHARDS}, work, engine)\n"
    )
    root = Path(__file__).parents[3]
    build = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL
    )
    try:
        _await(lambda: len(list(marks.iterdir())) == 2)
        build.send_signal(sent)
        build.wait(timeout=30)
    finally:
        build.kill()
        build.wait()
    helpers = [int(path.name) for path in marks.iterdir()]
    _await(lambda: not any(_is_alive(pid) for pid in helpers))


def _await(is_so) -> None:
    deadline_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_workers_must_not_be_negative():
    with pytest.raises(ValueError, match="workers must not be negative, is -1"):
        LocalEngine(workers=-1)
