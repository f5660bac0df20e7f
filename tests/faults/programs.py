"""Runs of train.py in processes of their own, and what they leave behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

import bn_jax

ROOT = Path(bn_jax.__file__).parents[1]
SCRIPT = ROOT / "train.py"
CONFIG = f"--config={ROOT / 'configs' / 'mnist_mlp.py'}:bn"

# Four checkpoints of a small network, the last three of them kept. Adam has a state.
SETTINGS = {
    "num_steps": 40,
    "batch_size": 24,
    "model.hidden_features": (8,),
    "probes": (),
    "optimizer.name": "adam",
    "optimizer.learning_rate": 0.01,
    "evaluation.schedule.early_every_steps": 20,
    "evaluation.schedule.early_until_step": 20,
    "evaluation.schedule.every_steps": 20,
    "evaluation.batch_size": 48,
    "evaluation.population_batches": 2,
    "evaluation.probe_examples": 50,
    "checkpoint.every_steps": 10,
    "checkpoint.keep": 3,
    "max_steps_per_dispatch": 5,
}

# Limit for start, compilation and training on a machine that is busy otherwise.
SECONDS_TO_END = 120.0
# From the loss of a process to the end of the others.
SECONDS_TO_NOTICE = 30.0
# 3 from Python; 134 where JAX's runtime ends the process by itself.
LOST_A_PROCESS = (3, 128 + signal.SIGABRT)


class Program:
    """A process of train.py."""

    def __init__(self, starter: "Starter", pid: int, output: Path) -> None:
        self.pid = pid
        self._starter = starter
        self._output = output

    @property
    def code(self) -> int | None:
        """Its exit code, as a shell shows it; None while it runs."""
        code = self._starter.ask({"pid": self.pid})
        return 128 - code if code is not None and code < 0 else code

    @property
    def output(self) -> str:
        """The text that the program has written so far."""
        return self._output.read_text(errors="replace")

    def send(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.code is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = SECONDS_TO_END) -> int:
        """Its exit code; it must end in time."""
        assert until(lambda: self.code is not None, seconds), self.output
        code = self.code
        assert code is not None
        return code


class Starter:
    """Starts processes of train.py, quickly; a context that leaves none behind."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("starter.py")), str(SCRIPT)],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Starter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def ask(self, request: dict[str, Any]) -> Any:
        """Sends a request to the starter and returns its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        words: Sequence[str],
        *,
        output: Path,
        environment: dict[str, str] | None = None,
        max_file_bytes: int | None = None,
    ) -> Program:
        """Begins a process.

        Args:
            words: Of train.py's command line.
            output: File that takes what it writes.
            environment: Variables to add.
            max_file_bytes: Size that no file of the process may pass.
        """
        output.touch()
        request = {
            "words": list(words),
            "output": str(output),
            "environment": environment or {},
            "max_file_bytes": max_file_bytes,
        }
        return Program(self, self.ask(request), output)


def flags(workdir: Path, **settings: Any) -> list[str]:
    """Words of train.py for the small network; `__` stands for each dot."""
    changed = {name.replace("__", "."): value for name, value in settings.items()}
    words = [f"--config.{name}={v}" for name, v in {**SETTINGS, **changed}.items()]
    return [CONFIG, f"--workdir={workdir}", *words]


def process_flags(num_processes: int) -> list[list[str]]:
    """Words that make each of several processes one of a run; none for one alone."""
    if num_processes == 1:
        return [[]]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    shared = [f"--coordinator_address={address}", f"--num_processes={num_processes}"]
    return [[*shared, f"--process_id={i}"] for i in range(num_processes)]


def until(is_so: Callable[[], Any], seconds: float = SECONDS_TO_END) -> bool:
    """Waits for a condition; returns False if it is still false at the deadline."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def wait_for_all(programs: Sequence[Program]) -> list[int]:
    """The exit codes of processes that end by themselves."""
    return [program.wait() for program in programs]


def end(programs: Sequence[Program]) -> None:
    """Ends what still runs."""
    for program in programs:
        with suppress(ProcessLookupError):
            program.send(signal.SIGKILL)
        program.wait()


def steps(workdir: Path) -> list[int]:
    """Steps that there is a checkpoint of."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdecimal())


def saved_state(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by their names, those of the run's key included."""
    path = (workdir / "checkpoints" / str(step) / "state").absolute()
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(path).item_metadata.tree
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        arrays = reader.restore(
            path,
            args=ocp.args.PyTreeRestore(
                restore_args=jax.tree.map(lambda _: as_numpy, tree)
            ),
        )
    leaves = jax.tree_util.tree_flatten_with_path(arrays)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_end(workdir: Path, other: Path) -> None:
    """Asserts that two runs have ended alike, to the last bit."""
    last = steps(other)[-1]
    here, there = saved_state(workdir, last), saved_state(other, last)
    assert here.keys() == there.keys()
    assert any("opt_state" in name for name in here)
    assert [n for n in here if here[n].tobytes() != there[n].tobytes()] == []
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (workdir, other)]
    assert metrics[0] == metrics[1]
