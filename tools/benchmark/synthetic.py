"""A dataset of random tokens, written by the project's own writer.

Only the text, its embedding and the search are left out: chunk table, neighbour table,
examples and TFRecord files are made as those of a database are.
"""

import tempfile
import types
from pathlib import Path
from typing import cast

import numpy as np

from data_pipeline.config import DataConfig
from data_pipeline.database import Database, neighbours
from data_pipeline.database.versions import Version
from data_pipeline.sequences import dataset, packing
from data_pipeline.storage.files import write_json
from data_pipeline.text.tokenizer import Tokenizer

_VOCAB_SIZE = 128_000
_MEAN_CHUNKS = 20  # of a document


def write_dataset(folder: Path, cfg: DataConfig, num_sequences: int) -> Path:
    """Writes `num_sequences` training sequences; gives the folder for `Sequences`."""
    rng = np.random.default_rng(cfg.seed)
    num_chunks = num_sequences * cfg.sequence_chunks
    ends_T = rng.random(num_chunks) < 1 / _MEAN_CHUNKS
    columns = {
        "tokens": rng.integers(0, _VOCAB_SIZE, (num_chunks, cfg.chunk_len), np.int32),
        "lengths": np.full(num_chunks, cfg.chunk_len, np.int32),
        "documents": np.cumsum(ends_T).astype(np.int64),
        "offsets": np.zeros(num_chunks, np.int64),
    }
    chunk_shard = folder / "chunks" / "train-00000"
    chunk_shard.mkdir(parents=True)
    for name, column in columns.items():
        np.save(chunk_shard / f"{name}.npy", column, allow_pickle=False)
    neighbour_shard = folder / "neighbours" / "train-00000"
    neighbour_shard.mkdir(parents=True)
    shape_TN = (num_chunks, cfg.candidates)
    neighbours.write_shard(
        neighbour_shard,
        rng.integers(0, num_chunks, shape_TN),
        rng.random(shape_TN, np.float32),
    )
    write_json(folder / "chunks" / "stage.json", {"shards": ["train-00000"]})
    as_built = Version(number=0, base="")
    database = Database(folder, {"fingerprint": "random tokens"}, as_built)
    # All that an example asks of a tokenizer.
    token_bytes = types.SimpleNamespace(token_bytes_V=np.full(_VOCAB_SIZE, 4, np.int32))
    database.tokenizer = cast(Tokenizer, token_bytes)
    write_sequences(database, cfg, folder / "dataset")
    return folder / "dataset"


def write_sequences(database: Database, cfg: DataConfig, folder: Path) -> None:
    """Makes a dataset of an open database; raises ValueError as `dataset.plan`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for shard in dataset.plan(database, cfg):
            (made := Path(temporary) / shard).mkdir()
            packed_SC = packing.pack(database, shard.split("-")[0], cfg)
            for _ in dataset.write_shard(database, cfg, shard, packed_SC, made):
                pass
        dataset.join(database, cfg, Path(temporary), folder)
