"""Launching from the command line: what is refused, what is skipped, and one real sweep."""

import errno
import json
import os
from pathlib import Path

import pytest

from data_pipeline.storage import locks
from experiments import command_line, launch
from experiments.launching import local, work_units

_SEEDS = (
    "def sweep(add):\n    for seed in range(3):\n        add(**{'train.seed': seed})\n"
)


@pytest.fixture
def config(tmp_path) -> str:
    """The flag of a config file whose sweep has three seeds."""
    path = tmp_path / "swept.py"
    path.write_text(f"from experiments.configs.tiny import get_config\n\n\n{_SEEDS}")
    return f"--config={path}"


@pytest.fixture
def database(tmp_path) -> str:
    """The flag of a folder that a build seems to have finished."""
    (tmp_path / "database" / "dataset" / "all").mkdir(parents=True)
    return f"--database={tmp_path / 'database'}"


@pytest.fixture
def ends(monkeypatch) -> dict[str, str]:
    """The state in which each unit ends, by its name, in place of being run."""
    states: dict[str, str] = {}

    def run(units, limits, say) -> int:
        for unit in units:
            unit.record(state=states.get(unit.name, "finished"), last_line="error: x")
            with (unit.folder / "ran").open("a") as file:
                file.write("x")
        return 2 if set(states.values()) & {"failed"} else 0

    monkeypatch.setattr(local, "run", run)
    return states


def _runs(out: Path) -> dict[str, int]:
    """How often each unit was started."""
    return {
        path.name: len((path / "ran").read_text()) if (path / "ran").exists() else 0
        for path in sorted(out.glob("unit-*"))
    }


def test_every_unit_has_a_folder_that_says_what_it_is(config, database, ends, tmp_path):
    out = tmp_path / "out"
    words = [config, "--sweep", f"--out={out}", database, "--config.train.steps=7"]
    assert launch.main(words) == 0
    assert _runs(out) == {f"unit-{number:03}": 1 for number in range(3)}
    for number, unit in enumerate(work_units.read(out)):
        told = json.loads((unit.folder / "unit.json").read_text())
        assert told["point"] == {"train.seed": str(number)}
        assert told["settings"]["train"]["seed"] == number
        assert told["settings"]["train"]["steps"] == 7
        assert "--config.train.steps=7" in told["launched_as"]
        assert told["commit"] and "jax" in told["environment"]["packages"]
        for job, name in zip(told["jobs"], ("train", "evaluate"), strict=True):
            assert job[:2] == ["experiments.main", f"--job={name}"]
            assert job[2:] == [f"--workdir={unit.folder}", database]
        # The run takes its settings from its folder, without a --config.
        (run,) = command_line.config_of([f"--workdir={unit.folder}"]).split()
        assert run.endswith(f"run.py:{unit.folder}")


def test_finished_units_are_skipped_and_failed_ones_wait_to_be_asked_for(
    config, database, ends, tmp_path, capsys
):
    out = tmp_path / "out"
    words = [config, "--sweep", f"--out={out}", database]
    ends.update({"unit-000": "failed", "unit-001": "preempted"})
    assert launch.main(words) == 2
    ends.clear()
    capsys.readouterr()
    assert launch.main(words) == 2
    assert (
        "unit-000 failed before: error: x (--restart_failed" in capsys.readouterr().out
    )
    assert list(_runs(out).values()) == [1, 2, 1]
    assert launch.main([*words, "--restart_failed"]) == 0
    assert list(_runs(out).values()) == [2, 2, 1]
    assert launch.main(["status", str(out)]) == 0
    assert "unit-001  finished" in capsys.readouterr().out
    assert len(json.loads((out / "summary.json").read_text())["units"]) == 3


def test_the_environment_that_is_kept_has_no_secrets(
    config, database, ends, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("XLA_FLAGS", "--xla_told")
    launch.main([config, f"--out={tmp_path / 'out'}", database])
    text = (tmp_path / "out" / "unit-000" / "unit.json").read_text()
    assert "hf_secret" not in text and "--xla_told" in text


def test_the_database_is_built_once_before_the_first_unit(
    config, ends, tmp_path, monkeypatch, capsys
):
    built = []

    def run(self, words, heard):
        built.append(words)
        if len(built) == 1:
            heard(b"error: no text\n")
            return 2
        (tmp_path / "out" / "database" / "dataset" / "all").mkdir(parents=True)
        return 0

    monkeypatch.setattr(launch.Child, "run", run)
    words = [config, "--sweep", f"--out={tmp_path / 'out'}"]
    assert launch.main(words) == 2
    assert set(_runs(tmp_path / "out").values()) == {0}
    assert "error: no text\nthe database could not be built" in capsys.readouterr().out
    assert launch.main(words) == launch.main(words) == 0
    assert len(built) == 2 and built[1] == [
        "experiments.build_database",
        f"--config=run:{tmp_path / 'out' / 'unit-000'}",
        f"--database={tmp_path / 'out' / 'database'}",
    ]


def test_what_runs_elsewhere_is_written_and_printed_and_not_started(
    config, ends, tmp_path, capsys
):
    out = tmp_path / "out"
    words = [config, "--sweep", f"--out={out}", "--python=python3"]
    assert launch.main([*words, "--executor=print"]) == 0
    building, *lines = capsys.readouterr().out.splitlines()[1:]
    assert building.startswith("python3 -m experiments.build_database --config=run:")
    assert len(lines) == 3 and lines[2].endswith(f"launching.host {out}/unit-002")
    (out / "database" / "dataset" / "all").mkdir(parents=True)
    assert launch.main([*words, "--executor=slurm"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines == [f"sbatch {out}/slurm/unit-{number:03}.sh" for number in range(3)]
    assert (
        (out / "slurm" / "unit-002.sh").read_text().startswith("#!/bin/bash\n#SBATCH")
    )
    assert set(_runs(out).values()) == {0}


_MISTAKES = {
    "no config": (["--out={out}"], "name what to run: --config=tiny"),
    "no folder": (["{config}"], "arguments are required: --out"),
    "folder without a name": (["{config}", "--out="], "name of a folder is empty"),
    "unknown executor": (["{config}", "--out={out}", "--executor=pigeon"], "'pigeon'"),
    "unknown flag": (["{config}", "--out={out}", "--swep"], "did you mean --sweep?"),
    "abbreviated flag": (["{config}", "--out={out}", "--data=x"], "no flag --data"),
    "a word": (["{config}", "--out={out}", "now"], "unknown argument 'now'"),
    "flag of one run": (["{config}", "--out={out}", "--workdir=x"], "of all by --out"),
    "setting without value": (
        ["{config}", "--out={out}", "--config.train.seed"],
        "--config.train.seed needs a value",
    ),
    "unknown setting": (
        ["{config}", "--out={out}", "--config.train.stepz=3"],
        "no setting train.stepz; did you mean train.steps",
    ),
    "wrong type": (["{config}", "--out={out}", "--config.train.steps=x"], "'x'"),
    "setting out of range": (
        ["{config}", "--out={out}", "--config.train.steps=0"],
        "train.steps must be",
    ),
    "swept and typed": (
        ["{config}", "--out={out}", "--sweep", "--config.train.seed=1"],
        "--config.train.seed is given too",
    ),
    "no sweep": (["--config=retro", "--out={out}", "--sweep"], "has no sweep: define"),
    "unknown config": (["--config=nono", "--out={out}"], "no configuration 'nono'"),
    "no units at a time": (
        ["{config}", "--out={out}", "--parallel=0"],
        "--parallel must",
    ),
    "negative restarts": (
        ["{config}", "--out={out}", "--restarts=-1"],
        "--restarts must",
    ),
    "negative grace": (["{config}", "--out={out}", "--grace_s=-1"], "--grace_s must"),
    "no number": (["{config}", "--out={out}", "--parallel=two"], "'two'"),
    "no hosts": (
        ["{config}", "--out={out}", "--hosts=0"],
        "--hosts must be at least 1",
    ),
    "hosts that split no batch": (
        ["{config}", "--out={out}", "--hosts=3"],
        "--hosts=3 does not divide train.batch_size=2",
    ),
    "a file as folder": (["{config}", "--out={file}"], "can't write to"),
    "a folder below a file": (["{config}", "--out={file}/a"], "can't write to"),
    "no image of GKE": (["{config}", "--out={out}", "--executor=gke"], "--image=IMAGE"),
    "unknown slice": (
        ["{config}", "--out={out}", "--executor=slurm", "--accelerator=v9:2"],
        "v9:2 is not KIND:SHAPE",
    ),
    "hosts without a first": (
        ["{config}", "--out={out}", "--executor=print", "--hosts=2"],
        "--coordinator=HOST:PORT",
    ),
    "trace of steps that are not": (
        ["{config}", "--out={out}", "--config.watch.profile_steps=5,9999"],
        "watch.profile_steps must be the first and the last step",
    ),
    "trace of one number": (
        ["{config}", "--out={out}", "--config.watch.profile_steps=(5,)"],
        "watch.profile_steps must be",
    ),
    "unknown mode": (
        ["{config}", "--out={out}", "--config.watch.wandb_mode=on"],
        "watch.wandb_mode must be one of online, offline",
    ),
    "dashboard of nothing": (["dashboard", "{out}"], "holds no work units"),
    "dashboard of no folder": (["dashboard"], "arguments are required: DIR"),
    "status of nothing": (["status", "{out}"], "holds no work units"),
    "status of no folder": (["status"], "arguments are required: DIR"),
    "status of too much": (["status", "{out}", "x"], "unrecognized arguments: x"),
}


@pytest.mark.parametrize("name", _MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_launched(
    name, config, ends, tmp_path, capsys
):
    words, message = _MISTAKES[name]
    file, out = tmp_path / "file", tmp_path / "out"
    file.touch()
    made = launch.run(
        [word.format(config=config, out=out, file=file) for word in words]
    )
    assert made == command_line.USER_ERROR
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not said.out and not out.exists()


def test_a_database_of_another_corpus_is_refused(config, database, ends, tmp_path):
    manifest = {"settings": {"corpus": str(tmp_path)}}
    (tmp_path / "database" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"was built from {tmp_path}, not from"):
        launch.main([config, f"--out={tmp_path / 'out'}", database])
    assert not (tmp_path / "out").exists()


def test_two_launchers_on_one_folder_are_refused(config, database, ends, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    words = [config, f"--out={out}", database]
    with (
        locks.locked(out / ".launching", "launching in"),
        pytest.raises(ValueError, match=f"another process is launching in {out}: wait"),
    ):
        launch.main(words)
    assert not _runs(out)
    assert launch.main(words) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.train.steps=9", "train.steps=700 there and train.steps=9 here"),
        ("--hosts=2", r"another work unit \(hosts\)"),
        ("--database={other}", r"another work unit \(jobs\)"),
    ],
)
def test_a_folder_of_another_launch_is_refused(
    change, message, config, database, ends, tmp_path
):
    out, other = tmp_path / "out", tmp_path / "other"
    (other / "dataset" / "all").mkdir(parents=True)
    launch.main([config, "--sweep", f"--out={out}", database])
    with pytest.raises(ValueError, match=f"unit-000 holds .*{message}"):
        launch.main(
            [config, "--sweep", f"--out={out}", database, change.format(other=other)]
        )
    assert list(_runs(out).values()) == [1, 1, 1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written_is_named(config, database, ends, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="can't write to"):
        launch.main([config, f"--out={tmp_path / 'out'}", database])


@pytest.mark.parametrize("fits", range(4))
def test_a_disk_that_is_full_in_the_middle_launches_nothing(
    fits, config, database, ends, tmp_path, monkeypatch, capsys
):
    """Whichever file is the first that has no room; the same words then go on."""
    out = tmp_path / "out"
    words = [config, "--sweep", f"--out={out}", database]
    written, real = [], os.fsync

    def fsync(number):
        written.append(number)
        if len(written) > fits:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        assert launch.run(words) == command_line.USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "make room" in line.lower()
    assert not any(_runs(out).values()) if out.exists() else True
    assert launch.run(words) == 0
    assert list(_runs(out).values()) == [1, 1, 1]


@pytest.fixture
def neighbours(tmp_path) -> str:
    """The flag of a config file whose sweep reads one, three and two neighbours a chunk."""
    path = tmp_path / "swept.py"
    path.write_text(
        "from experiments.configs.tiny import get_config\n\n\n"
        "def sweep(add):\n"
        "    for n in (1, 3, 2):\n"
        "        add(**{'data.num_neighbours': n})\n"
        "    add(**{'data.seed': 5})\n"
    )
    return f"--config={path}"


def test_a_database_is_built_with_the_most_neighbours_that_a_unit_reads(
    neighbours, ends, tmp_path, monkeypatch
):
    built = []

    def run(self, words, heard):
        built.append([word.rpartition("/")[2] for word in words[1:]])
        return 0

    monkeypatch.setattr(launch.Child, "run", run)
    assert launch.main([neighbours, "--sweep", f"--out={tmp_path / 'out'}"]) == 0
    first, other = built
    assert first == ["unit-001", "database"]
    assert other[0] == "unit-003" and other[1].startswith("database-")
    units = work_units.read(tmp_path / "out")
    read = [unit.jobs[0][3].rpartition("/")[2] for unit in units]
    assert read == ["database"] * 3 + [other[1]]


def test_a_database_with_too_few_neighbours_is_refused_before_anything_starts(
    neighbours, ends, tmp_path
):
    place = tmp_path / "database" / "dataset" / "all" / "retro" / "1.0.0"
    place.mkdir(parents=True)
    (place / "metadata.json").write_text('{"data": {"num_neighbours": 2}}')
    words = [neighbours, "--sweep", f"--out={tmp_path / 'out'}"]
    with pytest.raises(
        ValueError, match="has 2 neighbours a chunk, and unit-001 reads 3"
    ):
        launch.main([*words, f"--database={tmp_path / 'database'}"])
    assert not (tmp_path / "out" / "unit-000").exists()


def test_what_a_launch_has_found_is_kept_without_its_folders(
    config, database, ends, tmp_path
):
    out, kept = tmp_path / "out", tmp_path / "results" / "retrofit.json"
    launch.main([config, "--sweep", f"--out={out}", database])
    with pytest.raises(ValueError, match="no result to keep"):
        launch.main(["status", str(out), f"--keep={kept}"])
    results = {"conditions": {"off": {"bits_per_byte": 1.0, "minus_off": 0.0}}}
    for unit in work_units.read(out):
        (unit.folder / "evaluation").mkdir()
        (unit.folder / "evaluation" / "results.json").write_text(json.dumps(results))
    assert launch.main(["status", str(out), f"--keep={kept}"]) == 0
    made = json.loads(kept.read_text())
    assert made["variants"][""]["conditions"]["off"]["seeds"] == 3
    assert len(made["units"]) == made["made"]["finished"] == 3
    assert str(tmp_path) not in json.dumps(made["units"])
