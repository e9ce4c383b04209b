"""A dataset of random tokens is read as a database's is."""

import numpy as np

from data_pipeline.config import DataConfig
from data_pipeline.sequences.batches import Sequences
from tools.benchmark import synthetic


def test_a_dataset_of_random_tokens(tmp_path):
    cfg = DataConfig(sequence_chunks=2048 // 64, num_neighbours=2)
    folder = synthetic.write_dataset(tmp_path, cfg, 12)
    batch = next(Sequences(folder, "train").shuffled(4, seed=0, num_steps=1))
    assert batch["inputs_BL"].shape == (4, 2048)
    assert batch["neighbours_BCNR"].shape[:3] == (4, 32, 2)
    assert batch["neighbour_lengths_BCN"].max() == 128
    assert len(np.unique(batch["inputs_BL"])) > 1000
