"""The data sheets of chips, by the kind that JAX names."""

import pytest

from tools.benchmark import device


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("TPU v4", 275.0),
        ("TPU v5 lite", 197.0),
        ("TPU v5p", 459.0),
        ("TPU v6 lite", 918.0),
    ],
)
def test_data_sheets(kind, tflops):
    assert device.data_sheet_flops(kind) == tflops * 1e12
    assert device.data_sheet_flops("cpu") is None
