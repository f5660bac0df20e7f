"""The machine that figures were measured on."""

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


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()
