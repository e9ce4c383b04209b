"""Sequences of chunks with their neighbours, as a TFDS dataset of TFRecord files.

Written once, then read by anything that reads TFDS: `tfds.builder_from_directory(...)`
needs no code of ours. Neighbour tokens are materialised, so that training reads one
stream and no table; neighbour ids are kept, so that every example can be traced.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int

from data_pipeline.config import DataConfig
from data_pipeline.database import Database

VERSION = "1.0.0"
SPLITS = ("train", "validation", "test")
_AT_ONCE = 256  # sequences that are gathered together: the fewer reads of a shard


def windows(
    documents: Int[np.ndarray, " D"],
    first_chunk_D: Int[np.ndarray, " D"],
    num_chunks_D: Int[np.ndarray, " D"],
    sequence_chunks: int,
    stride: int,
    *,
    keep_incomplete: bool,
) -> Int[np.ndarray, "S C"]:
    """Chunk ids of sequences: windows over the chunks of documents, one after the other.

    Args:
        documents: rows of documents, in the order in which their chunks follow.
        first_chunk_D, num_chunks_D: where each document's chunks are, by row.
        sequence_chunks: C.
        stride: chunks from one window's start to the next; less than C repeats the last
            C - stride chunks of a window as context of the next.
        keep_incomplete: also the last window, filled up with -1.
    """
    stream = np.concatenate(
        [
            np.arange(first_chunk_D[d], first_chunk_D[d] + num_chunks_D[d])
            for d in documents
        ]
        or [np.zeros(0, np.int64)]
    )
    last_start = len(stream) - sequence_chunks
    count = max(last_start // stride + 1, 0)
    covered = (count - 1) * stride + sequence_chunks if count else 0
    if keep_incomplete and covered < len(stream):
        count += 1
        missing = (count - 1) * stride + sequence_chunks - len(stream)
        stream = np.append(stream, np.full(missing, -1))
    starts = np.arange(count) * stride
    return stream[starts[:, None] + np.arange(sequence_chunks)]


def sequences(database: Database, split: str, cfg: DataConfig) -> Iterator[dict]:
    """Examples of a split, in order.

    Training: documents in an order drawn from `cfg.seed`, each chunk once. Validation
    and test: documents in their own order, windows that overlap by half, of which only
    the new half is scored; so all text is scored once, most of it with long context and
    with neighbours. (Paper, section 4: a window of 2048 and a stride of 1024.)
    """
    table = database.chunks(split)
    document_of = table.column("documents")
    rows, first_chunk, num_chunks = np.unique(
        document_of, return_index=True, return_counts=True
    )
    is_train = split == "train"
    stride = cfg.sequence_chunks if is_train else max(cfg.sequence_chunks // 2, 1)
    order = np.arange(len(rows))
    if is_train:
        order = order[~database.state.is_deleted(rows)]
        np.random.default_rng(cfg.seed).shuffle(order)
    ids_SC = windows(
        order,
        first_chunk,
        num_chunks,
        cfg.sequence_chunks,
        stride,
        keep_incomplete=not is_train,
    )
    overlap = (cfg.sequence_chunks - stride) * cfg.chunk_len
    for start in range(0, len(ids_SC), _AT_ONCE):
        ids_BC = ids_SC[start : start + _AT_ONCE]
        # Scored in the window before; the first window has none.
        scored_before_B = np.where(np.arange(start, start + len(ids_BC)), overlap, 0)
        block = _examples(database, split, cfg, ids_BC, scored_before_B, document_of)
        for row in range(len(ids_BC)):
            yield {name: values[row] for name, values in block.items()}


def _examples(
    database: Database,
    split: str,
    cfg: DataConfig,
    ids_BC: Int[np.ndarray, "B C"],
    scored_before_B: Int[np.ndarray, " B"],
    document_of: Int[np.ndarray, " T"],
) -> dict[str, np.ndarray]:
    """The arrays of B sequences, by name."""
    table, length = database.chunks(split), cfg.sequence_chunks * cfg.chunk_len
    # One chunk more than the sequence has, for the target of its last position.
    last_B1 = ids_BC[:, -1:]
    has_next_B1 = (last_B1 >= 0) & (last_B1 + 1 < len(table))
    wide_BC = np.append(ids_BC, np.where(has_next_B1, last_B1 + 1, -1), axis=1)
    there_BC, rows_BC = wide_BC >= 0, np.maximum(wide_BC, 0)
    documents_BC = np.where(there_BC, document_of[rows_BC], -1)
    lengths_BC = np.where(there_BC, table.take("lengths", rows_BC), 0)
    real_BCM = np.arange(cfg.chunk_len) < lengths_BC[..., None]
    tokens_BL = np.where(real_BCM, table.take("tokens", rows_BC), 0)
    tokens_BL = tokens_BL.reshape(len(ids_BC), -1).astype(np.int32)
    # Documents of a sequence get the segments 1, 2, ... in the order they appear in.
    starts_BC = np.diff(documents_BC, axis=1, prepend=-2) != 0
    segments_BL = np.where(real_BCM, np.cumsum(starts_BC, axis=1)[..., None], 0)
    segments_BL = segments_BL.reshape(len(ids_BC), -1).astype(np.int32)
    inputs_BL, targets_BL = tokens_BL[:, :length], tokens_BL[:, 1 : length + 1]
    own_BL, next_BL = segments_BL[:, :length], segments_BL[:, 1 : length + 1]
    is_new_BL = np.arange(length) >= scored_before_B[:, None]
    return {
        "inputs_L": inputs_BL,
        "targets_L": targets_BL,
        "loss_weights_L": ((own_BL == next_BL) & (own_BL > 0) & is_new_BL).view(
            np.uint8
        ),
        "target_bytes_L": database.tokenizer.token_bytes_V[targets_BL],
        "segments_L": own_BL,
        "documents_C": documents_BC[:, :-1],
        **_neighbours(database, split, cfg, ids_BC, documents_BC[:, :-1]),
    }


def _neighbours(
    database: Database,
    split: str,
    cfg: DataConfig,
    ids_BC: Int[np.ndarray, "B C"],
    documents_BC: Int[np.ndarray, "B C"],
) -> dict[str, np.ndarray]:
    """Neighbours of chunks, from none of the documents of their sequence."""
    # Held-out documents are not in the database.
    own_BC = documents_BC if split == "train" else documents_BC[:, :0]
    ids_TN, distances_TN = database.neighbours(split).outside(
        ids_BC.reshape(-1),
        np.repeat(own_BC, ids_BC.shape[1], axis=0),
        database.document_of_chunk,
        cfg.num_neighbours,
    )
    tokens_TNR, lengths_TN = database.chunks().passages(ids_TN, cfg.neighbour_len)
    found = {
        "neighbours_CNR": tokens_TNR,
        "neighbour_lengths_CN": lengths_TN,
        "neighbour_ids_CN": ids_TN,
        "neighbour_distances_CN": distances_TN,
    }
    shape = ids_BC.shape
    return {
        name: array.reshape(*shape, *array.shape[1:]) for name, array in found.items()
    }


def write(database: Database, cfg: DataConfig, folder: Path) -> None:
    """Writes all splits below `folder`, as `retro/VERSION/`; same input, same bytes.

    A split of no documents is left out.

    Raises:
        ValueError: if there is less training text than one sequence.
    """
    import tensorflow_datasets as tfds

    num_chunks = len(database.chunks())
    if num_chunks < cfg.sequence_chunks:
        raise ValueError(
            f"{database.folder} has {num_chunks} training chunks, less than "
            f"data.sequence_chunks={cfg.sequence_chunks}: give more text"
        )

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # it speaks of downloads
        _builder(database, cfg, folder).download_and_prepare()
    for path in sorted(folder.rglob("*.tfrecord-*")):
        _order_features(path)


def _order_features(path: Path) -> None:
    """Writes a record file again, with each example's features in one order.

    Protobuf puts them in an order that differs from process to process.
    """
    import tensorflow as tf

    temporary = path.with_name(f".{path.name}.tmp")
    with tf.io.TFRecordWriter(str(temporary)) as writer:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            example = tf.train.Example.FromString(record)
            writer.write(example.SerializeToString(deterministic=True))
    os.replace(temporary, path)


def _builder(database: Database, cfg: DataConfig, folder: Path):
    # TensorFlow takes seconds to import; only who writes or reads sequences pays.
    import tensorflow as tf
    import tensorflow_datasets as tfds

    length, chunks = cfg.sequence_chunks * cfg.chunk_len, cfg.sequence_chunks
    per_chunk = (chunks, cfg.num_neighbours)

    def tensor(shape, dtype):
        return tfds.features.Tensor(shape=shape, dtype=dtype)

    version = tfds.core.Version(VERSION)

    # Registered, it could be made once in a process only. TFDS carries no types.
    class Retro(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        """Token sequences with the neighbours of each of their chunks."""

        VERSION = version

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="Token sequences with the neighbours of their chunks.",
                disable_shuffling=True,  # the order is ours: shuffled documents
                metadata=tfds.core.MetadataDict(
                    {"database": database.fingerprint, "data": _identity(cfg)}
                ),
                features=tfds.features.FeaturesDict(
                    {
                        "inputs_L": tensor((length,), tf.int32),
                        "targets_L": tensor((length,), tf.int32),
                        "loss_weights_L": tensor((length,), tf.uint8),
                        "target_bytes_L": tensor((length,), tf.int32),
                        "segments_L": tensor((length,), tf.int32),
                        "documents_C": tensor((chunks,), tf.int64),
                        "neighbours_CNR": tensor(
                            (*per_chunk, cfg.neighbour_len), tf.int32
                        ),
                        "neighbour_lengths_CN": tensor(per_chunk, tf.int32),
                        "neighbour_ids_CN": tensor(per_chunk, tf.int64),
                        "neighbour_distances_CN": tensor(per_chunk, tf.float32),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            # TFDS refuses a split without examples.
            return {
                split: self._generate_examples(split)
                for split in SPLITS
                if len(database.chunks(split))
            }

        def _generate_examples(self, split):
            yield from enumerate(sequences(database, split, cfg))

    return Retro(data_dir=str(folder))


def _identity(cfg: DataConfig) -> dict:
    return {
        "sequence_chunks": cfg.sequence_chunks,
        "chunk_len": cfg.chunk_len,
        "num_neighbours": cfg.num_neighbours,
        "neighbour_len": cfg.neighbour_len,
        "seed": cfg.seed,
    }
