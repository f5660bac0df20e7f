"""A progress bar that batch jobs, whose output is a file, are told by as well."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> Any:
    """A bar on the standard error stream, drawn once a minute where it is no terminal.

    Args:
        **options: As `tqdm.tqdm` takes them.
    """
    seconds = 0.1 if sys.stderr.isatty() else 60
    return tqdm(mininterval=seconds, maxinterval=max(seconds, 10), **options)
