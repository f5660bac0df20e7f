"""What processes write, copied line by line to where it belongs."""

import os
import re
import selectors
import subprocess
import sys
from collections.abc import Callable
from typing import IO


def relay_output(
    process: subprocess.Popen[bytes], prefix: str, selector: selectors.BaseSelector
) -> None:
    """Has the process's output written wherever the caller's own goes.

    Args:
        process: A process whose output and errors are pipes.
        prefix: What stands in front of each line.
        selector: Waits for output; `handle_events` copies what has come.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    for pipe, stream in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
        handler = _copier(pipe, stream, prefix.encode())
        selector.register(pipe, selectors.EVENT_READ, handler)


def handle_events(selector: selectors.BaseSelector, seconds: float | None) -> None:
    """Waits for events; one whose handler returns False is not waited for again.

    Args:
        selector: Its data are the handlers.
        seconds: How long to wait at most; None for as long as it takes.
    """
    for key, _ in selector.select(seconds):
        if not key.data():
            selector.unregister(key.fileobj)


def write(stream: IO[str], text: bytes) -> None:
    """Writes to the caller's own output, at once.

    Args:
        stream: `sys.stdout` or `sys.stderr`.
        text: Bytes, because what a process writes need not be text.
    """
    stream.flush()
    stream.buffer.write(text)  # pyright: ignore[reportAttributeAccessIssue]
    stream.buffer.flush()  # pyright: ignore[reportAttributeAccessIssue]


def _copier(pipe: IO[bytes], stream: IO[str], prefix: bytes) -> Callable[[], bool]:
    """A function that copies whole lines from a pipe, and says whether more may come.

    A carriage return ends a line as well: progress bars are drawn with them.
    """
    # A carriage return at the end may be half of a CRLF.
    end_of_line = re.compile(rb"(\r\n|\n|\r(?=.))", re.DOTALL)
    rest = b""

    def copy() -> bool:
        nonlocal rest
        new = os.read(pipe.fileno(), 1 << 16)
        rest += new
        if not new and rest:
            rest = rest.rstrip(b"\r") + b"\n"
        *parts, rest = end_of_line.split(rest)
        lines = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
        # A progress bar begins with a carriage return, before which is nothing.
        write(stream, b"".join(prefix + line for line in lines if line != b"\r"))
        return bool(new)

    return copy
