"""The accelerator: what its makers promise, what its products reach, what it holds."""

import dataclasses
import time

import jax
import jax.numpy as jnp

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
    """Promised bfloat16 FLOP/s of a chip by its `device_kind`; None if not listed."""
    for name, tflops in _DATA_SHEET_TFLOPS:
        if kind.startswith(name):
            return tflops * 1e12
    return None


def num_chips() -> int:
    """Devices that compute for themselves: those of a CPU share its cores."""
    return 1 if jax.default_backend() == "cpu" else jax.device_count()


@dataclasses.dataclass(slots=True)
class Product:
    """A large square product of one dtype, the measure of what a device can do."""

    dtype: str
    side: int = 0  # 0: 8192 on accelerators, 2048 on CPUs
    best_flops: float = 0.0  # FLOP/s of the best run so far

    def run(self) -> float:
        """Measures it once more, on one device; gives this run's FLOP/s."""
        on_cpu = jax.default_backend() == "cpu"
        self.side = self.side or (2048 if on_cpu else 8192)
        repeats = 2 if on_cpu else 20
        left, right = _matrices(self.side, self.dtype)
        _multiply(left, right).block_until_ready()
        start_s = time.perf_counter()
        for _ in range(repeats):
            product = _multiply(left, right)
        product.block_until_ready()
        elapsed_s = time.perf_counter() - start_s
        flops = 2 * self.side**3 * repeats / elapsed_s
        self.best_flops = max(self.best_flops, flops)
        return flops


def _matrices(side: int, dtype: str):
    # Not zeros: they cost an accelerator less power, so that it would run faster.
    left, right = jax.random.normal(
        jax.random.key(0), (2, side, side), jnp.dtype(dtype)
    )
    return left, right


@jax.jit
def _multiply(left, right):
    # As the model multiplies: XLA:CPU has fast bfloat16 products for float32 results alone.
    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.float32 if on_cpu else left.dtype
    return jnp.matmul(left, right, preferred_element_type=dtype)


def peak_bytes() -> int:
    """The most memory held so far: of the fullest device, on CPUs of this process."""
    peaks = [
        stats["peak_bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats
    ]
    return max(peaks) if peaks else memory.process_peak_bytes()


def free_bytes_per_device() -> int:
    """What a device can still hold; devices of a CPU share what the machine has."""
    free = [
        stats["bytes_limit"] - stats["bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats()) and "bytes_limit" in stats
    ]
    return min(free) if free else memory.free_bytes() // jax.local_device_count()
