"""Programs for tests to launch, and what becomes of their processes."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

# Start of every child's program: its index, and a way to wait for all others.
_PRELUDE = """
import os, signal, sys, time
from pathlib import Path

words = dict(word[2:].split("=") for word in sys.argv[1:] if word.startswith("--"))
index, size = int(words["process_id"]), int(words["num_processes"])
folder = Path(__file__).parent

def meet():
    (folder / f"begun{index}").write_text(str(os.getpid()))
    (folder / f"begun{index}").rename(folder / f"ready{index}")
    for _ in range(1000):
        if all((folder / f"ready{i}").exists() for i in range(size)):
            return
        time.sleep(0.01)
    sys.exit("the others are missing")

def hold(*numbers):
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

def wait_for(*numbers):
    got = signal.sigtimedwait(numbers, 20)
    return got.si_signo if got else 0
"""

# Says which signals it gets, and ends as a program does that saves first.
COUNT_SIGNALS = """
hold(signal.SIGINT, signal.SIGTERM)
meet()
begin()
first = wait_for(signal.SIGINT, signal.SIGTERM)
second = signal.sigtimedwait([signal.SIGINT, signal.SIGTERM], 0.3)
print(f"signal {first}, then {second}")
sys.exit(128 + first)
"""


def program(folder: Path, text: str) -> list[str]:
    """The command that runs the given lines as a program in that folder."""
    path = folder / "program.py"
    path.write_text(_PRELUDE + text)
    return [sys.executable, str(path)]


def pids_of(folder: Path) -> list[int]:
    """Ids of the processes that have begun in that folder."""
    return [int(path.read_text()) for path in sorted(folder.glob("ready*"))]


def is_alive(pid: int) -> bool:
    try:
        # A zombie has ended; whoever inherited it may not have looked yet.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def until(is_so: Callable[[], bool]) -> bool:
    """Waits up to 20 seconds for a condition and returns its last value."""
    deadline = time.monotonic() + 20
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_so()
