"""Processor and cores of the machine that runs this process."""

import os
import platform
from pathlib import Path


def describe_machine() -> dict[str, str | int | None]:
    """Returns what timings depend on: processor, number of cores, Python version."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def own_cores() -> list[int]:
    """Returns the numbers of the cores that this process may use.

    The list is empty on systems that do not report them, such as macOS.
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return []


def number_of_cores() -> int:
    """Returns how many cores this process may use; the machine may have more."""
    return len(own_cores()) or os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()
