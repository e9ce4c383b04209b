"""ScaNN is imported without TensorFlow, and reads nothing that is not its own."""

from pathlib import Path

import pytest

from data_pipeline.index import scann


def test_tensorflow_is_hidden_only_while_scann_is_imported():
    import subprocess
    import sys

    code = (
        "import sys; from data_pipeline.index import scann; scann.import_scann();"
        "assert 'tensorflow' not in sys.modules, 'left behind';"
        "assert 'jax' not in sys.modules, 'jax'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _index(folder: Path) -> dict:
    """Writes what `load` reads before ScaNN does; gives the index's own facts."""
    (folder / "scann_assets.pbtxt").write_text('assets { asset_path: "a.npy" }')
    return {}


def test_a_pickle_of_others_is_refused_before_scann_unpickles_it(tmp_path):
    facts = _index(tmp_path)
    (tmp_path / "scann_docids.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(ValueError, match="docids.pkl does not belong to this index"):
        scann.ScannIndex.load(tmp_path, facts)


@pytest.mark.parametrize("place", ["/etc/passwd", "../other/a.npy", "..\\a.npy"])
def test_assets_that_lie_elsewhere_are_refused(tmp_path, place):
    facts = _index(tmp_path)
    (tmp_path / "scann_assets.pbtxt").write_text(f'assets {{ asset_path: "{place}" }}')
    with pytest.raises(ValueError, match="its assets lie elsewhere"):
        scann.ScannIndex.load(tmp_path, facts)
