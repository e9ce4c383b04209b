"""The accelerator: the FLOP/s that its makers promise, and the memory that it holds."""

import jax

from tools.benchmark import memory

# Peak of dense bfloat16 products of one chip, TFLOP/s (sparsity not counted), by how the
# kind that JAX names begins; the first that fits counts.
# Sources: NVIDIA's data sheets "H100 Tensor Core GPU" (SXM 1,979 and NVL 1,671 with
# sparsity, half without; PCIe 1,513), "H200 Tensor Core GPU" (as H100) and "A100 Tensor
# Core GPU"; Google Cloud's TPU documentation, pages "TPU v4", "TPU v5e", "TPU v5p" and
# "TPU v6e".
_DATA_SHEET_TFLOPS = (
    ("NVIDIA H100 PCIe", 756.5),
    ("NVIDIA H100 NVL", 835.5),
    ("NVIDIA H100", 989.5),
    ("NVIDIA H200 NVL", 835.5),
    ("NVIDIA H200", 989.5),
    ("NVIDIA A100", 312.0),
    ("TPU v4", 275.0),
    ("TPU v5 lite", 197.0),
    ("TPU v5e", 197.0),
    ("TPU v5", 459.0),
    ("TPU v6", 918.0),
)


def data_sheet_flops(kind: str) -> float | None:
    """Gives the promised bfloat16 FLOP/s of a chip by its `device_kind`; None if not listed."""
    for name, tflops in _DATA_SHEET_TFLOPS:
        if kind.startswith(name):
            return tflops * 1e12
    return None


def num_chips() -> int:
    """Counts devices that compute for themselves: those of a CPU share its cores."""
    return 1 if jax.default_backend() == "cpu" else jax.device_count()


def peak_bytes() -> int:
    """Gives the most memory held so far: of the fullest device, on CPUs of this process."""
    peaks = [
        stats["peak_bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats
    ]
    return max(peaks) if peaks else memory.process_peak_bytes()


def free_bytes_per_device() -> int:
    """Gives what a device can still hold; devices of a CPU share the machine's memory."""
    free = [
        stats["bytes_limit"] - stats["bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats()) and "bytes_limit" in stats
    ]
    return min(free) if free else memory.free_bytes() // jax.local_device_count()
