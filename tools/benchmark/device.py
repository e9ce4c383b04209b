"""The memory of the devices that JAX computes on."""

import jax

from tools.benchmark import memory


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
