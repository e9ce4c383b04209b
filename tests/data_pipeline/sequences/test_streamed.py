"""Training sequences that stay in a store are read as those of a folder."""

import numpy as np
import pytest

from data_pipeline.database import Database
from data_pipeline.sequences import streamed
from data_pipeline.sequences.batches import Sequences
from data_pipeline.storage import object_store
from data_pipeline.storage.object_store import ObjectStore
from tests import object_stores
from tests.object_stores import BUCKET

_RECORDS = "dataset/all/retro/1.0.0/retro-train.tfrecord-00000-of-00001"


@pytest.mark.parametrize(
    ("file", "by_training", "by_others"),
    [
        (_RECORDS, False, False),
        (_RECORDS.replace("train", "test"), True, True),
        ("dataset/all/retro/1.0.0/features.json", True, True),
        ("tokenizer/all/tokenizer.model", True, True),
        ("manifest.json", True, True),
        ("embeddings/train-00000/vectors.npy", False, True),
        ("chunks/stage.json", True, True),
    ],
)
def test_a_job_copies_what_it_reads(file, by_training, by_others):
    assert streamed.is_read_by_training(file) == by_training
    assert streamed.is_no_sequence(file) == by_others


@pytest.fixture
def stored(tiny_database, monkeypatch, tmp_path, request):
    """The address of a stored database."""
    object_stores.use(object_stores.endpoint(), monkeypatch)
    monkeypatch.setenv("RETRO_CACHE", str(tmp_path / "cache"))
    url = f"s3://{BUCKET}/{request.node.name}"
    ObjectStore(url).put("", object_store.files_below(tiny_database.folder))
    return url


def test_batches_are_those_of_the_folder_and_a_lost_object_is_named(
    stored, tiny_database
):
    copy = object_store.fetched(stored, streamed.is_read_by_training)
    assert not list((copy / "embeddings").rglob("*.npy"))
    opened = Database.open(copy)  # without what training does not read
    assert opened.fingerprint == tiny_database.fingerprint
    folder = tiny_database.folder / "dataset" / "all"
    local = Sequences(folder, "train")
    remote = Sequences(copy / "dataset" / "all", "train")
    for act in (
        lambda each: each.shuffled(4, seed=3, first_step=1, num_steps=4),
        lambda each: each.in_order(4),
    ):
        pairs = list(zip(act(local), act(remote), strict=True))
        assert pairs
        for wanted, found in pairs:
            for name in wanted:
                np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    client = object_stores.client(object_stores.endpoint())
    (shard,) = (p.name for p in folder.rglob("retro-train.tfrecord-00000-*"))
    key = f"{stored.removeprefix(f's3://{BUCKET}/')}/dataset/all/retro/1.0.0/{shard}"
    client.delete_object(Bucket=BUCKET, Key=key)
    with pytest.raises(ValueError, match=f"{shard} is not there"):
        next(remote.shuffled(4, seed=3, num_steps=4))
