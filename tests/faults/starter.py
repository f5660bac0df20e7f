"""Starts train.py in processes of their own that inherit what takes seconds to import.

One line of JSON in, one out: `{"words": [...], ...}` begins a process and gives its id,
`{"pid": 7}` gives its exit code, or null while it runs. All of them, and this program,
die with the one that has started it.
"""

import ctypes
import importlib
import json
import os
import resource
import runpy
import signal
import sys

# Modules that train.py imports. A forked process has them already.
_IMPORTED = ("absl.app", "bn_jax.training.loop", "ml_collections.config_flags")
_PR_SET_PDEATHSIG = 1


def serve(script: str) -> list[str] | None:
    """The words of a process that has just begun; None once nobody asks any more."""
    codes: dict[int, int | None] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            print(json.dumps(_code(request["pid"], codes)), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _become(request)
            return [script, *request["words"]]
        codes[pid] = None
        print(pid, flush=True)
    for pid, code in codes.items():
        if code is None:
            os.kill(pid, signal.SIGKILL)
    return None


def _code(pid: int, codes: dict[int, int | None]) -> int | None:
    """Its exit code, negative after a signal that killed it; None while it runs."""
    if codes[pid] is None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            codes[pid] = os.waitstatus_to_exitcode(status)
    return codes[pid]


def _become(request: dict) -> None:
    """Makes this process one of its own: session, output, environment and limits."""
    die_with_parent()
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, descriptor)
    os.environ.update(request["environment"])
    limit = request["max_file_bytes"]
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    for name in _IMPORTED:
        importlib.import_module(name)
    words = serve(sys.argv[1])
    if words is not None:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
