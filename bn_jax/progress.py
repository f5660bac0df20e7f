"""Progress bar for terminals and for log files of batch jobs."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> Any:
    """Returns a progress bar that writes to the standard error stream.

    In a terminal, tqdm updates the bar ten times a second. In a file each update stays,
    so there tqdm writes one update a minute.

    Args:
        **options: Arguments of `tqdm.tqdm`.
    """
    seconds = 0.1 if sys.stderr.isatty() else 60
    return tqdm(mininterval=seconds, maxinterval=max(seconds, 10), **options)
