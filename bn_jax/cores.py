"""Which cores of the machine this process may use."""

import os


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
