"""A user's mistakes end in one line; Ctrl-C ends a command, and it can be gone on with."""

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import command_line, config
from tests.commands import TINY, run


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--config=nope.py", "nope.py"),
        (f"{TINY}:medium", "medium"),
        ("--config.model.widht=3", "setting model.widht; did you mean model.width"),
        ("--config.model.width=wide", "wide"),
        ("--config.model.width=3", "width"),
        ("--config.train.steps=0", "train.steps"),
        ("--no_such_flag=1", "no_such_flag"),
    ],
)
def test_wrong_flag_is_named_in_one_line(tmp_path, flag, named):
    flags = [flag] if "--config=" in flag or flag.startswith(TINY) else [TINY, flag]
    done = run("experiments.main", *flags, f"--workdir={tmp_path}", "--job=train")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and named in line


def test_a_setting_that_is_not_there_points_to_the_help():
    wrong = "--config.data.zzzzzzzz=1"
    done = run("experiments.build_database", TINY, wrong, "--database=x")
    assert "no setting data.zzzzzzzz (--help lists all of them)" in done.stderr


def test_help_shows_every_setting_as_it_is_typed():
    done = run("experiments.build_database", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    # A decoder's path is as long as it is; nothing else is.
    paths = ("  --config.data.tokenizer=/", "  --config.init_from=/")
    assert max(len(line) for line in lines if not line.startswith(paths)) <= 100
    shown = [line.split()[0] for line in lines if line.startswith("  --config.")]
    names = [flag.partition("=")[0].removeprefix("--config.") for flag in shown]
    assert names == config.setting_names()
    assert "--config.data.corpus=factbook" in shown  # of the configuration `retrofit`
    assert "int; of a trained tokenizer, at most" in done.stdout
    assert "--engine=local|ray" in done.stdout
    assert "--workdir=..." in done.stdout and "--logtostderr" not in done.stdout


def test_help_of_a_configuration_shows_its_values():
    changed = "--config.train.seed=7"
    done = run("experiments.main", f"{TINY}:baseline", changed, "--help")
    assert done.returncode == 0
    shown = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert {"--config.data.vocab_size=2048", "--config.model.depth=4", changed} <= shown
    assert "  --config.model.cca_layers='()' " in done.stdout


def test_help_of_a_configuration_that_is_not_there_is_a_mistake():
    done = run("experiments.main", "--config=nope.py", "--help")
    assert done.returncode == 2
    assert "nope.py" in done.stderr and not done.stdout


def test_a_command_line_is_read_before_jax_and_tensorflow_are_imported():
    imported = (
        "import sys, experiments.MODULE; "
        "sys.exit(str({'jax', 'tensorflow', 'numpy'} & set(sys.modules)))"
    )
    for module in ("main", "build_database", "database", "commands"):
        code = imported.replace("MODULE", module)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.stderr == "set()\n", module


def test_ctrl_c_ends_the_command_with_a_word_and_nothing_half_written(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(400):
        words = " ".join(f"word{number * i % 977}" for i in range(1, 400))
        (corpus / f"{number}.txt").write_text(words)
    # In the first of its parts, which only the process that was started knows of.
    command = [sys.executable, "-m", "experiments.retro", "train"]
    command += [f"--database={tmp_path / 'database'}", f"--corpus={corpus}"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    started = tmp_path / "database" / "embeddings" / "building.json"
    deadline_s = time.monotonic() + 100
    with process:
        try:
            while not started.exists() and process.poll() is None:
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert said == "\nstopped; the same command goes on from here\n"
    assert not (tmp_path / "database" / "embeddings" / "stage.json").exists()


def test_a_command_looks_for_no_cycles_as_it_ends():
    """JAX leaves so many objects that a look at all of them takes seconds."""
    lines = (
        "import sys",
        "from experiments import command_line",
        "class Cycle:",
        "    def __init__(self): self.own = self",
        "    def __del__(self): print('looked')",
        "def command(argv): print('done'); Cycle()",
        "command_line.start(command)",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "done\n"


def test_a_full_disk_is_called_so(capsys):
    """numpy says of it how many numbers it has written."""

    def save(_):
        with open("/dev/full", "wb") as full:
            np.ones(100_000).tofile(full)

    assert command_line.run(save, []) == command_line.USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: an array could not be written (100000 requested and "
    )
    assert "the disk is full" in line


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "error: /a/b: Permission denied"),
        (errno.ENOSPC, "error: /a/b: the disk is full. Make room and start"),
    ],
)
def test_errors_of_the_system_name_the_file_and_no_numbers(capsys, number, said):
    def fail(_):
        raise OSError(number, os.strerror(number), "/a/b")

    assert command_line.run(fail, []) == command_line.USER_ERROR
    assert capsys.readouterr().err.startswith(said)


def test_a_file_that_can_not_be_written_is_refused(tmp_path):
    command_line.output_file(tmp_path / "new" / "plot.png")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(ValueError, match="it is a folder, name a file in it"):
        command_line.output_file(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="can't write to .*/file"):
        command_line.output_file(tmp_path / "file" / "plot.png")
