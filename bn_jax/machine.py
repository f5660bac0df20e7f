"""The machine: its processor, and the cores that this process may use."""

import os
import platform
from pathlib import Path


def describe_machine() -> dict[str, str | int | None]:
    """What timings depend on: processor, number of cores, Python."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def own_cores() -> list[int]:
    """Numbers of the cores that this process is bound to; none where that is not told.

    Linux tells, macOS does not.
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return []


def number_of_cores() -> int:
    """Cores that this process may use, which may be fewer than there are."""
    return len(own_cores()) or os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()
