"""The memory of processes and of the machine, in bytes; needs no package."""

import os
import pathlib
import resource
import sys


def process_peak_bytes(process: int | str = "self") -> int:
    """Gives the most memory that a process has held in RAM since it began.

    On Linux from /proc: getrusage also counts what a parent held when it forked.
    """
    status = pathlib.Path(f"/proc/{process}/status")
    if status.exists():
        return _kilobytes(status.read_text(encoding="ascii"), "VmHWM:") * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_bytes() -> int:
    """Gives the RAM that a process can still get without taking it from others."""
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        return _kilobytes(meminfo.read_text(encoding="ascii"), "MemAvailable:") * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _kilobytes(text: str, name: str) -> int:
    line = next(line for line in text.splitlines() if line.startswith(name))
    return int(line.split()[1])
