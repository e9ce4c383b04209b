"""Settings of the data that can't be used are refused by name."""

import pytest

from data_pipeline.config import DataConfig


def test_the_default_settings_are_valid():
    DataConfig().validate()
    DataConfig(seed=0, validation_share=0.0, test_share=0.0).validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_len": 0}, r"data\.chunk_len must be at least 1, is 0"),
        ({"seed": -1}, r"data\.seed must be at least"),
        ({"index": "flat"}, r"data\.index must be one of auto, .*'flat'"),
        ({"neighbour_len": 96}, r"data\.neighbour_len 96 is not a multiple"),
        ({"candidates": 1}, r"data\.candidates 1 is less than data\.num_neighbours 2"),
        ({"recall_target": 0.0}, r"data\.recall_target must be in \(0, 1\]"),
        ({"recall_target": float("nan")}, r"data\.recall_target must be in"),
        ({"validation_share": 0.5, "test_share": 0.5}, "leave something to train on"),
        ({"validation_share": float("nan")}, "leave something to train on"),
        ({"test_share": -0.1}, "must not be negative"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**changes).validate()
