"""Threads that read and decode the examples of a batch."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import Any


class Threads:
    """A fixed number of threads; one thread is that of the caller."""

    def __init__(self, num_threads: int) -> None:
        """Stores the number of threads, which start when they are first needed.

        Args:
            num_threads: Number of threads, at least 1.
        """
        self.num_threads = num_threads

    def for_each(
        self, function: Callable[..., object], arguments: Iterable[tuple[Any, ...]]
    ) -> None:
        """Calls a function once for each item, and returns after the last call.

        Args:
            function: Function to call. The first error that it raises is raised again.
            arguments: Arguments of each call.
        """
        queue, lock = iter(arguments), Lock()

        def call_until_empty() -> None:
            while True:
                with lock:
                    item = next(queue, None)
                if item is None:
                    return
                function(*item)

        if self.num_threads == 1:
            call_until_empty()
            return
        # One task for each thread, not for each item, because submitting takes time.
        tasks = [self._pool.submit(call_until_empty) for _ in range(self.num_threads)]
        for task in tasks:
            task.result()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        # Threads help, because decoding releases Python's global interpreter lock.
        return ThreadPoolExecutor(self.num_threads)
