"""Which files of a folder are read: no links out of it, no packages, no output of ours."""

import errno
import json
import os
import socket
from pathlib import Path

import pytest

from data_pipeline.storage import locks
from data_pipeline.text.corpora import identity
from data_pipeline.text.documents import Skipped
from data_pipeline.text.readers import folders
from tests.corpus_files import counts, read


def write(path: Path, text: str = "some text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def names(folder: Path) -> tuple[list[str], dict[str, int]]:
    skipped = Skipped()
    found = [str(p.relative_to(folder)) for p, _ in folders.files(folder, skipped)]
    return found, counts(skipped)


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    inside = write(corpus / "a/inside.txt")
    outside = write(tmp_path / "outside/secret.txt")
    # A folder whose name begins as the corpus's does is another.
    beside = write(tmp_path / "corpus-2/secret.txt")
    for number, target in enumerate(
        [outside, outside.parent, beside, Path("/dev/zero"), Path("/proc/self/status")]
    ):
        (corpus / f"out{number}").symlink_to(target)
    (corpus / "b.txt").symlink_to(inside)
    (corpus / "chain.txt").symlink_to("out0")
    (corpus / "c").symlink_to(corpus)
    (corpus / "circle").symlink_to("circle")
    (corpus / "nowhere").symlink_to("not there")
    assert names(corpus) == (
        ["a/inside.txt", "b.txt"],
        {"link out of the corpus": 6, "unreadable": 2},
    )
    (tmp_path / "by-link").symlink_to(corpus)
    assert names(tmp_path / "by-link")[0] == ["a/inside.txt", "b.txt"]


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(tmp_path / "socket.txt"))
    assert names(tmp_path) == ([], {"no regular file": 2})


def test_packages_and_caches_are_named_and_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "web/node_modules/left-pad/README.md")
    write(tmp_path / "env/pyvenv.cfg")
    write(tmp_path / "env/lib/x.py")
    write(tmp_path / "target/CACHEDIR.TAG")
    for hidden in (".git/config", ".venv/x.py", "CVS/x", "__pycache__/x", "b/.hidden"):
        write(tmp_path / hidden)
    write(tmp_path / "read.md")
    assert names(tmp_path) == (["read.md"], {"packages or cache": 3})


def test_own_output_is_named_and_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "read.md")
    before = identity(str(tmp_path))
    database = tmp_path / "work/building"
    database.mkdir(parents=True)
    with locks.locked(database / ".builder", "building"):
        write(database / "stage.json")
        assert names(tmp_path)[0] == ["read.md"]
    manifest = {"format_version": 1, "tokenizer_fingerprint": "0"}
    write(tmp_path / "copied/manifest.json", json.dumps(manifest))
    settings = {"command": "x", "commit": "x", "config": {}}
    write(tmp_path / "work/run/settings.json", json.dumps(settings))
    write(tmp_path / "work/run/report.md")
    assert names(tmp_path) == (["read.md"], {"output of retro-jax": 3})
    assert identity(str(tmp_path)) == before
    # Files of such names that are somebody else's.
    write(tmp_path / "web/manifest.json", '{"name": "app"}')
    write(tmp_path / "web/settings.json", "no json")
    assert names(tmp_path)[0] == ["read.md", "web/manifest.json", "web/settings.json"]


def test_a_limit_of_the_system_is_not_the_file_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.txt")

    def refuse(*args: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(OSError, match="Too many"):
            names(tmp_path)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="Too many"):
        read(tmp_path)


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    """Ids, titles, uris and what is left out are printable, and records are read."""
    odd = os.fsdecode(b"caf\xe9")
    write(tmp_path / odd / f"{odd}.txt")
    write(tmp_path / odd / f"{odd}.jsonl", '{"text": "a record"}\n')
    write(tmp_path / f"{odd}.csv", "prose\nx\n")
    documents, skipped = read(tmp_path)
    found = [(document.id, document.title) for document in documents]
    assert found == [("caf\ufffd:1", ""), ("caf\ufffd/caf\ufffd.txt", "caf\ufffd")]
    assert documents[1].uri == f"{tmp_path}/caf\ufffd/caf\ufffd.txt"
    assert skipped == {"no text field": 1}
    (alone,), _ = read(tmp_path / odd / f"{odd}.txt")
    assert (alone.id, alone.title) == ("caf\ufffd.txt", "caf\ufffd")


def test_identity_notices_a_change_that_keeps_size_and_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "before")
    os.utime(path, ns=(1, 1))
    known = [identity(str(place)) for place in (tmp_path, path)]
    assert [identity(str(place)) for place in (tmp_path, path)] == known
    path.write_text("behind")
    os.utime(path, ns=(1, 1))
    assert identity(str(tmp_path)) != known[0]
    assert identity(str(path)) != known[1]
