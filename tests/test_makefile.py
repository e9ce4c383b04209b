"""What a user types at `make` reaches the command as it is, whatever it is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT

_ODD = [
    "costs $500 in $HOME and ${HOME} and $(HOME) #x",
    "$(shell touch pwned) $(error stop) `touch pwned` $$(touch pwned)",
    "it's a \"quote\", isn't it'; touch pwned; '",
    "two\nlines\tand a \\n, back\\slashes\\",
    "~/docs, ~, a b  c  ",
    "--help",
    "-x=1 & | > < * ? [a] {b,c} ! %20 %s",
    "grüße 你好 🦜",
    "a:b,c=d@e",
    "=x",
    b"caf\xe9 in Latin-1".decode(errors="surrogateescape"),
]
_STUB = """#!{python}
import json, os, sys
words = {{"words": sys.argv[1:], "args": os.environ.get("RETRO_ARGS")}}
words["xla"] = os.environ.get("XLA_FLAGS", "")
with open("called.json", "a") as file:
    file.write(json.dumps(words) + "\\n")
"""


@pytest.fixture
def make(tmp_path):
    """Runs `make` where Python only notes its words; gives these and RETRO_ARGS."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for lock in ("", "-weights", "-aot"):
        (tmp_path / f"requirements{lock}.lock").touch()
    (tmp_path / "setup.cfg").touch()
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").write_text(_STUB.format(python=sys.executable))
    (bin_folder / "python").chmod(0o755)
    (tmp_path / ".venv" / "aot").mkdir()
    for installed in ("installed-cpu", "aot/installed"):
        (tmp_path / ".venv" / installed).touch()

    def run(*words: str, **env: str) -> list[dict]:
        done = subprocess.run(
            ["make", *words],
            cwd=tmp_path,
            env=os.environ | {"HOME": "/home/nobody"} | env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert not (tmp_path / "pwned").exists(), "a value was executed"
        lines = (tmp_path / "called.json").read_text().splitlines()
        (tmp_path / "called.json").unlink()
        return [json.loads(line) for line in lines]

    return run


@pytest.mark.parametrize("text", _ODD)
def test_what_is_typed_reaches_the_command_unchanged(make, text):
    begin = ["-m", "experiments.retro"]
    (called,) = make("generate", f"PROMPT={text}", f"CORPUS={text}")
    assert called["words"] == [*begin, "generate", f"--corpus={text}", "--", text]
    (called,) = make("search", f"QUERY={text}", f"WORKDIR={text}", f"DATABASE={text}")
    places = [f"--workdir={text}", f"--database={text}"]
    assert called["words"] == [*begin, "search", *places, "--", text]
    (called,) = make("train", f"CONFIG={text}", f"ARGS={text}")
    assert called["words"] == [*begin, "train", f"--config={text}"]
    assert called["args"] == f" {text}"
    # As variables of the environment they are no other.
    (called,) = make("generate", PROMPT=text, CORPUS=text)
    assert called["words"] == [*begin, "generate", f"--corpus={text}", "--", text]


def test_targets_call_the_command_and_name_no_more_than_was_given(make):
    for target, command in {
        "train": ["train"],
        "database": ["database"],
        "evaluate": ["evaluate"],
        "settings": ["settings"],
        "search": ["search", "--", ""],
        "generate": ["generate", "--", ""],
        "export": ["export", "--out="],
        "serve": ["serve-model"],
        "serve-db": ["serve"],
    }.items():
        (called,) = make(target)
        assert called["words"] == ["-m", "experiments.retro", *command]
    (called,) = make("serve-db", "PORT=1", "SHARDS=two words", RETRO_ARGS="--a")
    assert called["words"][3:] == ["--num_shards=two words", "--port=1"]
    assert called["args"] == "--a "


def test_ablations_run_here_but_for_those_of_pods(make):
    for scale, first in {
        "": "--parallel=2",
        "small": "--parallel=2",
        "gpu": "",
        "paper": "--executor=print",
    }.items():
        words = ("ablations", f"SCALE={scale}", "ARGS=--parallel=1")
        (called,) = make(*words, XLA_FLAGS="--xla_mine")
        name = scale or "smoke"
        assert called["words"][2:] == [
            *("launch", f"--config=ablations:{name}", "--sweep"),
            f"--out=work/ablations-{name}",
        ]
        quickly = "--xla_backend_optimization_level=0 " in called["xla"]
        assert quickly == (name == "smoke") and called["xla"].endswith("--xla_mine")
        # What is typed comes last, and so it counts.
        assert called["args"].split() == [*first.split(), "--parallel=1"]
    (called,) = make("ablations", "SCALE=$(shell touch pwned)`touch pwned`")
    assert called["words"][3] == "--config=ablations:$(shell touch pwned)`touch pwned`"
    (called,) = make("report")
    assert called["words"] == ["-m", "experiments.report.evidence"]


def test_only_an_exported_model_is_uploaded_and_only_where_one_says(tmp_path, make):
    def push(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            ["make", "push", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr.splitlines()[0] if done.stderr else ""

    hf = tmp_path / ".venv" / "bin" / "hf"
    hf.write_text(_STUB.format(python=sys.executable))
    hf.chmod(0o755)
    assert push()[1] == "error: OUT= holds no model: make export OUT=FOLDER first"
    (tmp_path / "a model").mkdir()
    (tmp_path / "a model" / "retro_config.json").touch()
    assert push("OUT=a model")[1].startswith("error: where to? HUB=OWNER/NAME")
    assert not (tmp_path / "called.json").exists()
    (called,) = make("push", "OUT=a model", "HUB=--owner/$(shell touch pwned)")
    words = ["upload", "--repo-type=model", "--"]
    assert called["words"] == [*words, "--owner/$(shell touch pwned)", "a model", "."]


def test_other_targets_take_values_apart_no_more(make):
    (called,) = make("aot", "AOT_CONFIG=$(shell touch pwned);x:7b", "TOPOLOGY='v4'")
    assert called["words"][2:] == [
        "--config=$(shell touch pwned);x:7b",
        "--topology='v4'",
        "--out=work/aot-7b.json",
    ]


def test_help_lists_commands_variables_and_an_example():
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert {"train", "search", "serve-db", "CORPUS", "QUERY", "ARGS"} <= names
    assert "make search CORPUS=" in done.stdout


@pytest.mark.parametrize(
    ("answer", "stays"), [("n\n", True), ("", True), ("y\n", False)]
)
def test_clean_asks_before_runs_are_deleted(tmp_path, answer, stays):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("work/tiny", ".venv"):
        (tmp_path / name).mkdir(parents=True)
    subprocess.run(["make", "clean"], cwd=tmp_path, input=answer, text=True, check=True)
    assert Path(tmp_path, "work").exists() == stays
    assert not Path(tmp_path, ".venv").exists()
