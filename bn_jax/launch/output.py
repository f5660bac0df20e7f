"""Copying of processes' output, line by line, to the caller's own output."""

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
    """Registers a process's output to be copied to the caller's own output.

    Args:
        process: A process whose standard output and error are pipes.
        prefix: Text to put in front of each line.
        selector: Selector that waits for the output; `handle_events` then copies it.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    for pipe, stream in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
        handler = _copier(pipe, stream, prefix.encode())
        selector.register(pipe, selectors.EVENT_READ, handler)


def handle_events(selector: selectors.BaseSelector, seconds: float | None) -> None:
    """Waits for events, and calls the handler of each.

    A handler that returns False is not called again.

    Args:
        selector: Selector whose keys hold the handlers as their data.
        seconds: Longest time to wait; None waits without limit.
    """
    for key, _ in selector.select(seconds):
        if not key.data():
            selector.unregister(key.fileobj)


def write(stream: IO[str], text: bytes) -> None:
    """Writes to the caller's own output, without buffering.

    Args:
        stream: `sys.stdout` or `sys.stderr`.
        text: Bytes, because a process can write bytes that are not valid text.
    """
    stream.flush()
    stream.buffer.write(text)  # pyright: ignore[reportAttributeAccessIssue]
    stream.buffer.flush()  # pyright: ignore[reportAttributeAccessIssue]


def _copier(pipe: IO[bytes], stream: IO[str], prefix: bytes) -> Callable[[], bool]:
    """Returns a function that copies whole lines from a pipe to a stream.

    That function returns False at the end of the pipe. It also treats a carriage return
    as the end of a line, because progress bars write one before each update.
    """
    # A carriage return at the end of the data may be the first half of a CRLF.
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
        # Drop the empty line before the carriage return that starts a progress bar.
        write(stream, b"".join(prefix + line for line in lines if line != b"\r"))
        return bool(new)

    return copy
