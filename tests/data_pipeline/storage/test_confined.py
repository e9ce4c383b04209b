"""What a record names and what a folder links to stays in the folder."""

import os

import pytest

from data_pipeline.storage import confined


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("train-00000", True),
        ("all/train-00000.parquet", True),
        ("index/vectors.npy", True),
        ("..", False),
        ("../thesis", False),
        ("a/../../b", False),
        ("/etc/passwd", False),
        ("a//b", False),
        ("", False),
        (".", False),
        ("a/.", False),
        (".hidden", False),
        ("~", False),
        ("a\\b", False),
        ("a\0b", False),
        ("a\nb", False),
        ("-rf", False),
        ("ａ", False),
        (None, False),
        (3, False),
        (["a"], False),
    ],
)
def test_names(path, inside):
    assert confined.is_inside(path) is inside


def test_descriptions():
    entry = {"size_bytes": 3, "sha256": "ab"}
    assert confined.is_description({"a.npy": entry, "index/b.npy": entry})
    for wrong in (
        None,
        [],
        {"../a": entry},
        {"a": None},
        {"a": {"size_bytes": "3", "sha256": "ab"}},
        {"a": {"size_bytes": True, "sha256": "ab"}},
        {"a": {"size_bytes": 3}},
    ):
        assert not confined.is_description(wrong)


def test_links(tmp_path):
    folder, outside = tmp_path / "database", tmp_path / "database-2"
    (folder / "deep" / "er").mkdir(parents=True)
    outside.mkdir()
    (folder / "file").write_text("")
    (folder / "deep" / "inside").symlink_to("../file")
    confined.check_links(folder)
    alias = tmp_path / "alias"  # the folder itself may be reached by a link
    alias.symlink_to(folder)
    confined.check_links(alias)
    for target in (outside, "/etc/passwd", "../../../database-2", "/nowhere"):
        link = folder / "deep" / "er" / "out"
        link.symlink_to(target)
        with pytest.raises(ValueError, match="deep/er/out is a link out of"):
            confined.check_links(folder)
        link.unlink()
    os.mkfifo(folder / "deep" / "pipe")
    with pytest.raises(ValueError, match="deep/pipe is neither"):
        confined.check_links(folder)
