"""ScaNN takes leaves of our own, with the members that it would give them."""

import numpy as np
import pytest

from data_pipeline.index import clustering, scann, scann_training


def test_scann_takes_the_leaves_and_leaves_no_files(tmp_path):
    vectors_TW = np.random.default_rng(5).standard_normal((2_000, 16), np.float32)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    built = scann.ScannIndex.build(
        vectors_TW, recall_target=0.97, seed=3, scratch=scratch
    )
    assert not list(scratch.iterdir())
    built.save(tmp_path / "index")
    from scann.partitioning import partitioner_pb2

    saved = partitioner_pb2.SerializedPartitioner()
    file = tmp_path / "index" / "serialized_partitioner.pb"
    saved.ParseFromString(file.read_bytes())
    saved_LW = [list(c.dimension) for c in saved.kmeans.kmeans_tree.root.centers]
    rng = np.random.default_rng(3)
    wanted_LW = clustering.k_means(
        vectors_TW, built.num_leaves, rng, iterations=scann_training.ITERATIONS
    )
    np.testing.assert_allclose(saved_LW, wanted_LW, rtol=1e-6)


@pytest.mark.parametrize("is_unit", [True, False])
def test_leaves_have_the_members_that_scann_gives_them(tmp_path, monkeypatch, is_unit):
    vectors_TW = np.random.default_rng(7).standard_normal((3_000, 16), np.float32)
    if is_unit:
        vectors_TW /= np.linalg.norm(vectors_TW, axis=1, keepdims=True)

    def saved(name):
        index = scann.ScannIndex.build(vectors_TW, recall_target=0.9, seed=0)
        index.save(tmp_path / name)
        files = (tmp_path / name).iterdir()
        return {path.name: path.read_bytes() for path in files}

    ours = saved("ours")
    members, save = "datapoint_to_token.npy", scann_training._save

    def save_without_members(folder, *args):
        save(folder, *args)
        (folder / members).unlink()
        assets = folder / "scann_assets.pbtxt"
        lines = assets.read_text().splitlines()
        assets.write_text("\n".join(line for line in lines if members not in line))

    monkeypatch.setattr(scann_training, "_save", save_without_members)
    theirs = saved("theirs")
    assert len(theirs[members]) > 4 * len(vectors_TW) * (2 if is_unit else 1)
    assert ours == theirs


def test_no_room_for_the_copy_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        scann.ScannIndex.build(
            np.eye(1_000, 16, dtype=np.float32) + 1,
            recall_target=0.97,
            seed=0,
            scratch=tmp_path / "nowhere",
        )
