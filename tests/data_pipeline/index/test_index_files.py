"""An index's folder is whole or not there, and holds nothing that was not written."""

import json

import pytest

from data_pipeline.index import index_files


def _save(folder, content: str) -> dict:
    def write(into):
        (into / "rows.bin").write_text(content)

    index_files.save_folder(folder, write, {"kind": "toy"})
    return json.loads((folder / index_files.META).read_text())


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "index"
    _save(folder, "first")
    meta = _save(folder, "second one")
    assert meta["kind"] == "toy" and meta["file_sizes_bytes"] == {"rows.bin": 10}
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    index_files.check_files(folder, meta)


def test_what_is_not_of_the_index_is_named(tmp_path):
    folder = tmp_path / "index"
    meta = _save(folder, "text")
    (folder / "more.pkl").touch()
    with pytest.raises(ValueError, match=r"more\.pkl does not belong"):
        index_files.check_files(folder, meta)
    (folder / "more.pkl").unlink()
    (folder / "rows.bin").write_text("cut")
    with pytest.raises(ValueError, match=r"rows\.bin has 3 bytes, 4 were written"):
        index_files.check_files(folder, meta)
    with pytest.raises(ValueError, match="format version 0"):
        index_files.check_files(folder, meta | {"format_version": 0})
