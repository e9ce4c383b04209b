"""Each word of `retro` reaches its module, with the flags as they were typed."""

import runpy
import subprocess
import sys

import pytest

from experiments import command_line, commands, config
from tests.commands import ROOT, run


@pytest.fixture
def retro(monkeypatch, capsys):
    """Runs the words of a command line; gives status, output and errors."""

    def run(*words: str, args: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["retro", *words])
        monkeypatch.setenv("RETRO_ARGS", args)
        with pytest.raises(SystemExit) as end:
            commands.run()
        return end.value.code, *capsys.readouterr()

    return run


def _quietly(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs it in a process of its own; the last line of output names large imports."""
    code = (
        "import sys\nfrom experiments import retro\ntry: retro.main()\n"
        "finally: print({'jax', 'tensorflow', 'numpy', 'absl'} & set(sys.modules))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_every_command_and_imports_nothing_large():
    done = _quietly("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in commands.COMMANDS:
        assert command in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_version_is_that_of_the_package(retro):
    status, out, _ = retro("--version")
    assert status == 0 and out.startswith("retro 0.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "there is no command 'trian'; did you mean train?"),
        (["--train"], "there is no command '--train'; did you mean train?"),
        (["xyz"], "there is no command 'xyz' (retro --help lists them)"),
        (
            ["train", "--steps=30"],
            "no flag --steps; did you mean --config.train.steps?",
        ),
        (
            ["train", "--wrokers=3"],
            "there is no flag --wrokers; did you mean --workers?",
        ),
        (
            ["train", "--seed=3"],
            "mean --config.data.seed or --config.train.seed or --config.evaluation.seed?",
        ),
        (
            ["train", "--config=tinny"],
            "no configuration 'tinny': there are ablations, decoder_shapes, finetuned, retro",
        ),
        (
            ["train", "--stream", "--config=tiny"],
            "--stream is for a database in a store",
        ),
        (["train", "--config=tiny:huge"], "error: tiny.py knows '', 'baseline'"),
        (["train", "--config.train.stepz=3"], "did you mean train.steps"),
        (["train", "--corpus=a", "--config.data.corpus=b"], "are one setting"),
        (["settings", "--config.train.stepz=3"], "did you mean train.steps"),
        (["settings", "--json"], "there is no flag --json"),
        (["train", "--workdir="], "the name of a folder is empty"),
        (["train", "--database="], "the name of a folder is empty"),
        (
            ["train", "--coordinator=a:1", "--num_processes=1", "--process_id=0"],
            "is not there: several processes train on a database that one has built",
        ),
        (["generate", "--workers=3", "x"], "--workers is for building, not for gener"),
        (["evaluate"], "holds no trained model: train one first, with `retro train`"),
        (["generate", "x"], "holds no trained model: train one first"),
        (["generate", "two", "prompts"], "unknown argument 'two'"),
        (["search", "x"], "build it with `retro database` (`make database`)"),
        (["serve", "--port=0"], "build it with `retro database`"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(words, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.retro", *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line
    assert not list(tmp_path.iterdir())


def test_flags_of_the_environment_stand_before_texts(retro, monkeypatch):
    called = []

    def start(module: str, **_) -> None:
        called.append([module, *sys.argv[1:]])
        sys.exit(0)

    monkeypatch.setattr(runpy, "run_module", start)
    monkeypatch.setattr(commands, "_status_of", lambda step, words: called.append(step))
    for words in (["generate", "--", "--help"], ["train"]):
        assert retro(*words, args="--config.train.steps=3 '--corpus=a b'")[0] == 0
    args = ["--config.train.steps=3", "--corpus=a b"]
    main = "experiments.main"
    assert called == [
        [main, "--job=generate", *args, "--", "--help"],
        [main, "--job=database"],
        [main, "--job=train"],
        [main, "--job=evaluate", *args],
    ]
    assert "can't be taken apart" in retro("train", args="'")[2]


def test_the_first_part_that_fails_is_the_last(retro, monkeypatch):
    monkeypatch.setattr(runpy, "run_module", lambda *_, **__: pytest.fail("goes on"))
    monkeypatch.setattr(commands, "_status_of", lambda *_: 75)
    assert retro("train")[0] == 75


def test_settings_are_listed_with_type_value_and_meaning():
    words = ("settings", "--config=tiny:baseline", "--config.train.seed=7")
    done = run("experiments.retro", *words)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("  --config.")]
    names = [flag.partition("=")[0].removeprefix("--config.") for flag in shown]
    assert names == config.setting_names()
    assert {"--config.train.seed=7", "--config.data.vocab_size=2048"} <= set(shown)
    assert any("int; of a trained tokenizer, at most" in line for line in lines)


def test_a_configuration_is_known_by_name_or_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "mine.py"
    own.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command_line.config_file("~/mine.py:a:b") == f"{own}:a:b"
    assert command_line.config_file("mine.py") == "mine.py"
    assert command_line.config_file("retro:172m").endswith("configs/retro.py:172m")
    with pytest.raises(ValueError, match="no configuration 'yours.py': there are abl"):
        command_line.config_file("yours.py")
