"""Sequences of chunks with their neighbours, as a TFDS dataset of TFRecord files.

Written once, then read by anything that reads TFDS: `tfds.builder_from_directory(...)`
needs no code of ours. Neighbour tokens are materialised, so that training reads one
stream and no table; neighbour ids are kept, so that every example can be traced.

A shard is a record file of consecutive sequences of a split, SPLIT-00000 and so on, made
by itself (`write_shard`); `join` makes one dataset of all. Same input, same bytes.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int

from data_pipeline.config import DataConfig
from data_pipeline.database import Snapshot
from data_pipeline.sequences.packing import blocks, pack
from data_pipeline.storage.files import link, read_json
from data_pipeline.text.copies.deduplicate import SPLITS

VERSION = "1.0.0"
_NAME = "retro"
_FILE = "sequences.tfrecord"
# All that our datasets are of, by what describes it; TFDS imports whatever is named.
_FEATURES = {
    "featuresDict": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "tensor": "tensorflow_datasets.core.features.tensor_feature.Tensor",
}
_MOST_NUMBERS = 2**24  # of a feature of one sequence
_SHARD_CHUNKS = 2**16  # about 70 MB with two neighbours of 128 tokens


def plan(database: Snapshot, cfg: DataConfig) -> dict[str, int]:
    """Names of the shards, and the sequences of each; none of a split without documents.

    Raises:
        ValueError: if there is less training text than one sequence.
    """
    num_chunks = len(database.chunks())
    if num_chunks < cfg.sequence_chunks:
        raise ValueError(
            f"{database.folder} has {num_chunks} training chunks, less than "
            f"data.sequence_chunks={cfg.sequence_chunks}: give more text"
        )
    at_most = _sequences_of_shard(cfg)
    planned = {}
    for split in SPLITS:
        total = len(pack(database, split, cfg))
        for number, first in enumerate(range(0, total, at_most)):
            planned[f"{split}-{number:05d}"] = min(at_most, total - first)
    return planned


def _sequences_of_shard(cfg: DataConfig) -> int:
    return max(_SHARD_CHUNKS // cfg.sequence_chunks, 1)


def write_shard(
    database: Snapshot,
    cfg: DataConfig,
    shard: str,
    packed_SC: Int[np.ndarray, "S C"],
    folder: Path,
) -> Iterator[int]:
    """Writes the sequences of a shard into a folder; reports how many a block had.

    Args:
        packed_SC: chunks of all sequences of its split, by `pack`.
    """
    # TensorFlow takes seconds to import; only who writes or reads sequences pays.
    import tensorflow as tf

    split, number = shard.split("-")
    first = int(number) * _sequences_of_shard(cfg)
    mine_SC = packed_SC[first : first + _sequences_of_shard(cfg)]
    with tf.io.TFRecordWriter(str(folder / _FILE)) as writer:
        for block in blocks(database, split, cfg, mine_SC, first):
            num_sequences = len(block["inputs_L"])
            for row in range(num_sequences):
                writer.write(_record({name: block[name][row] for name in block}))
            yield num_sequences


def _record(example: Mapping[str, np.ndarray]) -> bytes:
    """A serialised tf.train.Example, its features in one order."""
    import tensorflow as tf

    features = {}
    for name, array in example.items():
        values = array.reshape(-1).tolist()
        if array.dtype == np.float32:
            feature = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        else:
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        features[name] = feature
    made = tf.train.Example(features=tf.train.Features(feature=features))
    return made.SerializeToString(deterministic=True)


def join(database: Snapshot, cfg: DataConfig, shards: Path, folder: Path) -> None:
    """Makes a dataset below `folder`, at `retro/VERSION/`, of all shards in `shards`.

    Files are linked, not copied, where the file system can.
    """
    import tensorflow_datasets as tfds

    place = folder / _NAME / VERSION
    place.mkdir(parents=True)
    lengths: dict[str, list[int]] = defaultdict(list)
    sizes_bytes: dict[str, int] = defaultdict(int)
    for shard, num_sequences in plan(database, cfg).items():
        split = shard.split("-")[0]
        lengths[split].append(num_sequences)
        sizes_bytes[split] += (shards / shard / _FILE).stat().st_size
    template = tfds.core.ShardedFileTemplate(
        data_dir=place, dataset_name=_NAME, filetype_suffix="tfrecord"
    )
    splits = [
        tfds.core.SplitInfo(split, lengths[split], sizes_bytes[split], template)
        for split in lengths
    ]
    for split in splits:
        for number, path in enumerate(split.filepaths):
            link(shards / f"{split.name}-{number:05d}" / _FILE, Path(path))
    metadata = {"database": database.fingerprint, "data": _identity(cfg)}
    info = _info(metadata, cfg, place)
    info.set_splits(tfds.core.SplitDict(splits))
    info.write_to_directory(place)


def check_names(place: Path) -> None:
    """Refuses a dataset from elsewhere whose description names Python of others.

    TFDS imports the modules of the features that it reads: this comes before.

    Raises:
        ValueError: naming the file.
    """
    for path in (place / "features.json", *place.rglob("features.json")):
        if not _is_feature(read_json(path)):
            raise ValueError(
                f"{path} is damaged, or describes what no dataset of ours has: build the "
                "database again"
            )
    info = read_json(place / "dataset_info.json") or {}
    if info.get("moduleName", __name__) != __name__ or "module_name" in info:
        raise ValueError(f"{place / 'dataset_info.json'} is of another dataset")


def _is_feature(feature: object) -> bool:
    if not isinstance(feature, dict):
        return False
    kinds = feature.keys() - {"pythonClassName"}
    if len(kinds) != 1 or feature.get("pythonClassName") != _FEATURES.get(*kinds):
        return False
    (inner,) = (feature[kind] for kind in kinds)
    if "tensor" in kinds:
        return _is_tensor(inner)
    features = inner.get("features") if isinstance(inner, dict) else None
    return isinstance(features, dict) and all(map(_is_feature, features.values()))


def _is_tensor(tensor: object) -> bool:
    shape = tensor.get("shape") if isinstance(tensor, dict) else None
    sizes = shape.get("dimensions") if isinstance(shape, dict) else None
    return (
        isinstance(sizes, list)
        and all(isinstance(n, str) and re.fullmatch(r"\d{1,8}", n) for n in sizes)
        and math.prod(map(int, sizes)) <= _MOST_NUMBERS
    )


def _info(metadata: dict, cfg: DataConfig, place: Path):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    length, chunks = cfg.sequence_chunks * cfg.chunk_len, cfg.sequence_chunks
    per_chunk = (chunks, cfg.num_neighbours)

    def tensor(shape, dtype):
        return tfds.features.Tensor(shape=shape, dtype=dtype)

    return tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=_NAME,
            version=tfds.core.Version(VERSION),
            data_dir=str(place),
            module_name=__name__,
        ),
        description="Token sequences with the neighbours of their chunks.",
        disable_shuffling=True,  # the order is ours: shuffled documents
        metadata=tfds.core.MetadataDict(metadata),
        features=tfds.features.FeaturesDict(
            {
                "inputs_L": tensor((length,), tf.int32),
                "targets_L": tensor((length,), tf.int32),
                "loss_weights_L": tensor((length,), tf.uint8),
                "target_bytes_L": tensor((length,), tf.int32),
                "segments_L": tensor((length,), tf.int32),
                "documents_C": tensor((chunks,), tf.int64),
                "neighbours_CNR": tensor((*per_chunk, cfg.neighbour_len), tf.int32),
                "neighbour_lengths_CN": tensor(per_chunk, tf.int32),
                "neighbour_ids_CN": tensor(per_chunk, tf.int64),
                "neighbour_distances_CN": tensor(per_chunk, tf.float32),
            }
        ),
    )


def _identity(cfg: DataConfig) -> dict:
    return {
        "sequence_chunks": cfg.sequence_chunks,
        "chunk_len": cfg.chunk_len,
        "num_neighbours": cfg.num_neighbours,
        "neighbour_len": cfg.neighbour_len,
        "seed": cfg.seed,
    }
