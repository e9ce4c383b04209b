"""Batches are a function of seed and step, however often and on however many hosts."""

import copy
import itertools
import shutil
import types

import numpy as np
import pytest

from data_pipeline.sequences.batches import Sequences, num_neighbours

BATCH, STEPS = 8, 14
COUNTS = (7, 0, 11, 1, 5)  # records of each file: 24 in an epoch


@pytest.fixture(scope="module")
def folder(tiny_database):
    return tiny_database.folder / "dataset" / "all"


@pytest.fixture(scope="module")
def sequences(folder, tmp_path_factory):
    """24 sequences in five files, one of them empty; three steps are an epoch."""
    import tensorflow as tf

    opened = Sequences(folder, "train")
    records = tf.data.TFRecordDataset(opened._info.filepaths).as_numpy_iterator()
    paths = []
    for number, count in enumerate(COUNTS):
        path = tmp_path_factory.mktemp("records") / f"{number}.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in itertools.islice(records, count):
                writer.write(record)
        paths.append(str(path))
    opened._info = types.SimpleNamespace(
        filepaths=paths, shard_lengths=list(COUNTS), num_examples=sum(COUNTS)
    )
    return opened


@pytest.fixture(scope="module")
def uninterrupted(sequences):
    return list(sequences.shuffled(BATCH, seed=3, num_steps=STEPS))


def names(batches):
    """Which example each row is, by its neighbours and tokens."""
    return [
        [
            (ids.tobytes(), tokens.tobytes())
            for ids, tokens in zip(
                batch["neighbour_ids_BCN"], batch["inputs_BL"], strict=True
            )
        ]
        for batch in batches
    ]


def assert_same(found, wanted):
    found = list(found)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("first_step", range(STEPS))
def test_going_on_from_a_step(sequences, uninterrupted, first_step):
    found = sequences.shuffled(BATCH, seed=3, first_step=first_step, num_steps=STEPS)
    assert_same(found, uninterrupted[first_step:])


def test_fewer_neighbours_are_the_nearest(folder, tmp_path):
    assert num_neighbours(folder) == 2 and num_neighbours(tmp_path) is None
    one, both = Sequences(folder, "train", 1), Sequences(folder, "train")
    for found, wanted in (
        (one.in_order(4), both.in_order(4)),
        (
            one.shuffled(4, seed=3, num_steps=2),
            both.shuffled(4, seed=3, num_steps=2),
        ),
    ):
        batch, whole = next(iter(found)), next(iter(wanted))
        assert batch["neighbours_BCNR"].shape[2] == 1
        assert batch["neighbour_ids_BCN"].shape[2] == 1
        for name, values in whole.items():
            assert np.array_equal(
                batch[name], values[:, :, :1] if "_BCN" in name else values
            )


def test_no_step_left(sequences):
    found = sequences.shuffled(BATCH, seed=3, first_step=STEPS, num_steps=STEPS)
    assert list(found) == []


@pytest.mark.parametrize("num_hosts, first_step", [(2, 0), (4, 0), (4, 2)])
def test_rows_of_hosts_make_up_the_same_batch_in_the_same_order(
    sequences, uninterrupted, num_hosts, first_step
):
    hosts = [
        sequences.shuffled(
            BATCH, seed=3, first_step=first_step, num_steps=STEPS, rows=rows
        )
        for rows in np.arange(BATCH).reshape(num_hosts, -1)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*hosts, strict=True)
    ]
    assert_same(joined, uninterrupted[first_step:])


def test_rows_may_lie_apart(sequences, uninterrupted):
    found = sequences.shuffled(BATCH, seed=3, num_steps=5, rows=[6, 1])
    assert_same(
        found, [{n: a[[6, 1]] for n, a in b.items()} for b in uninterrupted[:5]]
    )


def test_each_epoch_has_each_example_once_in_its_own_order(sequences, uninterrupted):
    rows = list(itertools.chain(*names(uninterrupted)))
    epochs = [rows[start : start + 24] for start in range(0, 96, 24)]
    everything = set(itertools.chain(*names(sequences.in_order(BATCH))))
    assert len(everything) == 24
    for epoch in epochs:
        assert set(epoch) == everything
    assert len(set(map(tuple, epochs))) == 4
    assert set(rows[96:]) < everything


def test_a_step_does_not_depend_on_how_many_there_will_be(sequences, uninterrupted):
    found = sequences.shuffled(BATCH, seed=3, num_steps=4)
    assert_same(found, uninterrupted[:4])


def test_hosts_leave_neighbours_out_of_the_same_batches(sequences, tmp_path):
    """One row of an epoch has neighbours: its whole batch keeps them, the others none."""
    import tensorflow as tf

    paths = sequences._info.filepaths
    path = tmp_path / "0.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, record in enumerate(tf.data.TFRecordDataset(paths)):
            example = tf.train.Example.FromString(record.numpy())
            lengths = example.features.feature["neighbour_lengths_CN"].int64_list.value
            lengths[:] = [int(number == 13)] * len(lengths)
            writer.write(example.SerializeToString())
    one = copy.copy(sequences)
    one._info = types.SimpleNamespace(
        filepaths=[str(path)], shard_lengths=[24], num_examples=24
    )
    hosts = [
        list(one.shuffled(BATCH, seed=3, num_steps=3, rows=rows))
        for rows in (range(4), range(4, 8), range(8))
    ]
    neighbours = {"neighbours_BCNR", "neighbour_lengths_BCN"}
    for steps in hosts:
        assert sum(neighbours <= batch.keys() for batch in steps) == 1
    for batches in zip(*hosts, strict=True):
        assert len({frozenset(batch) for batch in batches}) == 1
        if neighbours <= batches[0].keys():
            found = [batch["neighbour_lengths_BCN"].any() for batch in batches]
            assert sorted(found) == [False, True, True]  # one of the halves, the whole
        else:
            assert not neighbours & batches[0].keys()


def test_another_seed_is_another_order(sequences, uninterrupted):
    other = names(sequences.shuffled(BATCH, seed=4, num_steps=3))
    assert other != names(uninterrupted[:3])
    first, second = (
        set(itertools.chain(*rows)) for rows in (other, names(uninterrupted[:3]))
    )
    assert first == second


def test_one_file_is_shuffled_too(folder):
    sequences = Sequences(folder, "train")
    size = len(sequences)
    in_order = names(sequences.in_order(size))[0]
    shuffled = names(sequences.shuffled(size, seed=0, num_steps=2))
    assert sorted(shuffled[0]) == sorted(shuffled[1]) == sorted(in_order)
    assert len({tuple(in_order), *map(tuple, shuffled)}) == 3


def test_names_and_types_of_the_contract(uninterrupted):
    batch = uninterrupted[0]
    shapes = {name: (v.shape, v.dtype) for name, v in batch.items()}
    assert shapes == {
        "inputs_BL": ((8, 32), np.int32),
        "targets_BL": ((8, 32), np.int32),
        "loss_weights_BL": ((8, 32), np.float32),
        "target_bytes_BL": ((8, 32), np.int32),
        "segments_BL": ((8, 32), np.int32),
        "documents_BC": ((8, 4), np.int64),
        "neighbours_BCNR": ((8, 4, 2, 16), np.int32),
        "neighbour_lengths_BCN": ((8, 4, 2), np.int32),
        "neighbour_ids_BCN": ((8, 4, 2), np.int64),
        "neighbour_distances_BCN": ((8, 4, 2), np.float32),
    }


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_in_order_pads_the_last_batch(folder, split):
    sequences = Sequences(folder, split)
    size = next(size for size in range(2, 9) if len(sequences) % size)
    batches = list(sequences.in_order(size))
    assert [len(batch["inputs_BL"]) for batch in batches] == [size] * len(batches)
    rows = list(itertools.chain(*names(batches)))
    assert rows[: len(sequences)] == list(
        itertools.chain(*names(sequences.in_order(1)))
    )
    left = len(sequences) % size
    padding = {name: values[left:] for name, values in batches[-1].items()}
    assert len(padding["inputs_BL"]) == size - left > 0
    for name in ("loss_weights_BL", "segments_BL", "neighbour_lengths_BCN"):
        assert not padding[name].any()
        assert batches[-1][name][:left].any()
    assert (padding["neighbour_ids_BCN"] == -1).all()
    assert (padding["documents_BC"] == -1).all()


def test_mistakes_are_named(tmp_path, folder, sequences):
    with pytest.raises(ValueError, match="holds no dataset: build the database"):
        Sequences(tmp_path, "train")
    for rows in ([0, 8], [-1], []):
        with pytest.raises(ValueError, match=r"rows \[.*\] are not of a batch of 8"):
            next(sequences.shuffled(8, seed=0, num_steps=1, rows=rows))


def test_metadata_says_what_it_was_made_from(folder, tiny_database):
    metadata = Sequences(folder, "test").metadata
    assert metadata["database"] == tiny_database.fingerprint
    assert metadata["data"]["chunk_len"] == 8
    assert metadata["data"]["seed"] == 0


def test_a_record_file_that_is_gone_is_named(tiny_database, tmp_path):
    """Before anything is read, and where it goes after that."""
    copy = shutil.copytree(tiny_database.folder / "dataset", tmp_path / "dataset")
    opened = Sequences(copy / "all", "train")
    (shard,) = copy.rglob("retro-train.tfrecord-*")
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing: restore it, or"):
        Sequences(copy / "all", "train")
    with pytest.raises(OSError, match=shard.name):
        next(opened.shuffled(BATCH, seed=3, num_steps=1))
