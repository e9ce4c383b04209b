"""Batches of sequences: the tf.data pipeline over the TFDS dataset.

The order is a pure function of (seed, step): every epoch draws an order of the files and
an order within each, the same on every host; a host takes its rows of every batch. To go
on from a step, whole files are passed over, so a restart reads at most one file twice.
TensorFlow runs on the CPU alone and never sees an accelerator.
"""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.database import integrity
from data_pipeline.sequences.dataset import VERSION, check_names
from data_pipeline.storage.confined import check_links
from data_pipeline.storage.files import read_json
from data_pipeline.storage.stage_record import read_stage
from data_pipeline.storage.streamed_files import StreamedFiles

Batch = dict[str, np.ndarray]

# Axes of a feature's name get the batch's before them: inputs_L -> inputs_BL.
_FLOATS = ("loss_weights_L",)
_NEIGHBOURS = ("neighbours_CNR", "neighbour_lengths_CN")
_LENGTHS = _NEIGHBOURS[1]
_ABSENT = {  # in a sequence that is all padding; 0 in all other features
    "documents_BC": -1,
    "neighbour_ids_BCN": -1,
    "neighbour_distances_BCN": np.inf,
}

_PARSED_AT_ONCE = min(os.cpu_count() or 1, 8)  # batches, each in a thread
_BATCHES_AHEAD = 4  # that wait while a step runs


class Sequences:
    """The sequences of one split of a dataset on disk."""

    def __init__(self, folder: Path, split: str, num_neighbours: int | None = None):
        """Opens it.

        Args:
            folder: where `dataset.join` wrote.
            split: train, validation or test.
            num_neighbours: of each chunk's neighbours so many are given, the nearest;
                all by default.
        Raises:
            ValueError: if there is no dataset, or no sequence in the split; naming a file
                that is not as written, or that names Python of others. What the records
                hold is checked when it is read.
        """
        import tensorflow_datasets as tfds

        _keep_tensorflow_off_accelerators()
        place = folder / "retro" / VERSION
        if not (place / "dataset_info.json").exists():
            raise ValueError(
                f"{folder} holds no dataset: build the database (where it was compacted, "
                "with the settings of its build: that makes the dataset alone)"
            )
        check_links(folder)
        self._described = _described(folder)
        self._streamed = StreamedFiles(folder.parent.parent)
        self._failed: Exception | None = None  # why a file could not be fetched
        for path, entry in self._described.items():
            if path in self._streamed:
                self._streamed.check(path, entry)
                continue
            integrity.check_size(path, entry)
            if path.suffix == ".json":
                integrity.check_sum(path, entry)
        check_names(place)
        info = tfds.builder_from_directory(place).info
        if split not in info.splits:
            raise ValueError(
                f"the {split} split of {folder} has no sequence: the corpus is too small "
                "for the split's share of documents"
            )
        self._info, self._features = info.splits[split], dict(info.features.items())
        for path in map(Path, self._info.filepaths):
            if path.parent != place:
                raise ValueError(f"{place} names records that lie elsewhere: {path}")
        self.metadata: dict = dict(info.metadata or {})
        self._num_neighbours = num_neighbours

    def __len__(self) -> int:
        return self._info.num_examples

    def in_order(self, batch_size: int, *, every: int = 1) -> Iterator[Batch]:
        """All sequences once, in order; the last batch is filled up with padding.

        Args:
            every: 3 gives one sequence of three, from all over the split.
        Raises:
            ValueError: naming a file with records that are damaged.
        """
        import tensorflow as tf

        files = self._files(self._info.filepaths)
        records = tf.data.TFRecordDataset(files).shard(every, every // 2)
        parse = functools.partial(_parsed, features=self._features)
        for batch in self._read(records.batch(batch_size).map(parse)):
            yield padded(named(batch, self._num_neighbours), batch_size)

    def shuffled(
        self,
        batch_size: int,
        *,
        seed: int,
        first_step: int = 0,
        num_steps: int,
        rows: Sequence[int] | np.ndarray | None = None,
    ) -> Iterator[Batch]:
        """This host's rows of the batches of steps first_step .. num_steps - 1.

        Neighbours are left out of a batch that has none in any row, also of other hosts:
        so all leave them out together.

        Args:
            batch_size: sequences of a step over all hosts.
            rows: which of a batch's rows to give, 0 .. batch_size - 1; all by default.
                Hosts whose devices hold the same part of a batch ask for the same rows.
        Raises:
            ValueError: for no row, or one that a batch does not have; naming a file with
                records that are damaged.
        """
        import tensorflow as tf

        mine = np.arange(batch_size) if rows is None else np.asarray(rows)
        if not len(mine) or mine.min() < 0 or mine.max() >= batch_size:
            raise ValueError(
                f"rows {mine} are not of a batch of {batch_size} sequences"
            )
        if first_step >= num_steps:
            return
        files, counts, seeds, skips = self._plan(
            seed, first_step * batch_size, num_steps * batch_size
        )

        def records_of(file, of_file):
            count, file_seed, skip = of_file
            records = tf.data.TFRecordDataset(file).batch(count).get_single_element()
            order = tf.random.experimental.stateless_shuffle(
                tf.range(count), [file_seed, 0]
            )
            return tf.data.Dataset.from_tensor_slices(tf.gather(records, order)[skip:])

        def parse(records_B):  # of the others' rows the lengths alone
            lengths = _parsed(records_B, {_LENGTHS: self._features[_LENGTHS]})
            batch = _parsed(tf.gather(records_B, mine), self._features)
            return batch, tf.reduce_any(lengths[_LENGTHS] > 0)

        of_files = tf.data.Dataset.from_tensor_slices((counts, seeds, skips))
        plan = tf.data.Dataset.zip((self._files(files), of_files))
        records = plan.flat_map(records_of).batch(batch_size, drop_remainder=True)
        batches = records.take(num_steps - first_step)
        batches = batches.map(parse, num_parallel_calls=_PARSED_AT_ONCE)
        batches = batches.prefetch(_BATCHES_AHEAD).with_options(_options())
        for batch, has_neighbours in self._read(batches):
            for name in () if has_neighbours else _NEIGHBOURS:
                del batch[name]
            yield named(batch, self._num_neighbours)

    def _files(self, paths: Sequence[str | os.PathLike]):
        """The files, in this order; what lies in a store is fetched before it is read."""
        import tensorflow as tf

        names = [os.fspath(path) for path in paths]
        if not any(Path(path) in self._streamed for path in names):
            return tf.data.Dataset.from_tensor_slices(names)

        def fetched() -> Iterator[str]:
            try:
                yield from map(str, self._streamed.in_turn(map(Path, names)))
            except (OSError, ValueError) as error:
                self._failed = error
                raise

        name = tf.TensorSpec((), tf.string)
        made = tf.data.Dataset.from_generator(fetched, output_signature=name)
        return made.prefetch(1)  # no more: `in_turn` lets files go

    def _read(self, batches) -> Iterator:
        """Reads batches, and names the file that a damaged record is in.

        TensorFlow sees the damage, but does not say where it is; nor what a store has said.
        """
        import tensorflow as tf

        try:
            yield from batches.as_numpy_iterator()
        except tf.errors.OpError:
            if self._failed is not None:
                raise self._failed from None
            for path in map(Path, self._info.filepaths):
                if path in self._described and path not in self._streamed:
                    integrity.check_sum(path, self._described[path])
            raise

    def _plan(self, seed: int, first: int, last: int):
        """Which files to read, in which inner order, to give examples first .. last - 1.

        Returns:
            Path, number of records, seed and records to pass over, of each file in turn.
        """
        files = np.array(self._info.filepaths, dtype=object)
        counts = np.array(self._info.shard_lengths, np.int64)
        rows: list[tuple[str, int, int, int]] = []
        position = (first // len(self)) * len(self)
        while position < last:
            draw = np.random.default_rng([seed, position // len(self)])
            order = draw.permutation(len(files))
            file_seeds = draw.integers(0, 2**31, len(files))
            for file in order:
                end = position + counts[file]
                if counts[file] and end > first and position < last:
                    skip = max(first - position, 0)
                    rows.append(
                        (str(files[file]), counts[file], file_seeds[file], skip)
                    )
                position = end
        paths, sizes, seeds, skips = zip(*rows, strict=True)
        return list(paths), np.array(sizes), np.array(seeds), np.array(skips)


def num_neighbours(folder: Path) -> int | None:
    """The neighbours that a dataset has for each chunk; None where there is no dataset."""
    made = read_json(folder / "retro" / VERSION / "metadata.json")
    return None if made is None else made["data"]["num_neighbours"]


def _described(folder: Path) -> dict[Path, dict]:
    """Size and checksum of each file; of none, if no build has finished it."""
    made = read_stage(folder.parent) or {"files": {}}
    entries = made["files"].get(folder.name, {})
    return {folder / name: entry for name, entry in entries.items()}


def _keep_tensorflow_off_accelerators() -> None:
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)


def _options():
    """How batches are made: in their order, and by no tuner."""
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    # The tuner's thread keeps a process from ending, for up to 5 seconds.
    options.autotune.enabled = False
    return options


def _parsed(records_B, features: Mapping) -> dict:
    """Gives these features of serialised records, as `dataset.write_shard` writes them."""
    import tensorflow as tf

    def spec(feature):
        written = tf.float32 if feature.tf_dtype.is_floating else tf.int64
        return tf.io.FixedLenFeature(feature.shape, written)

    specs = {name: spec(feature) for name, feature in features.items()}
    batch = tf.io.parse_example(records_B, specs)
    return {name: tf.cast(batch[name], features[name].tf_dtype) for name in batch}


def named(batch: dict, num_neighbours: int | None = None) -> Batch:
    """Features under the names of the batch contract, with so many neighbours."""
    named = {}
    for name, values in batch.items():
        stem, axes = name.rsplit("_", 1)
        if axes.startswith("CN"):
            values = values[:, :, :num_neighbours]
        dtype = np.float32 if name in _FLOATS else values.dtype
        named[f"{stem}_B{axes}"] = values.astype(dtype, copy=False)
    return named


def padded(batch: Batch, batch_size: int) -> Batch:
    """A full batch: the missing rows are all padding and have no weight."""
    missing = batch_size - len(batch["inputs_BL"])
    if not missing:
        return batch
    return {
        name: np.pad(
            values,
            ((0, missing), *((0, 0),) * (values.ndim - 1)),
            constant_values=_ABSENT.get(name, 0),
        )
        for name, values in batch.items()
    }
