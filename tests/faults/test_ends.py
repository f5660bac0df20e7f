"""One process of several that fails by itself: it ends, and so do the others."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults.conftest import Train
from faults.programs import SCRIPT, flags, process_flags, steps, until

# Program that two processes run instead of training.
FAIL = """
import runpy, sys
import jax
from bn_jax.training import loop
from bn_jax.training.distributed.processes import wait_for_all
def train(*_, **__):
    wait_for_all("all have begun")
    if jax.process_index() == 1:
        raise TypeError("a mistake")
    wait_for_all("never")
loop.train = train
"""

# JAX waits five minutes by itself.
BE_IMPATIENT = """
import functools, runpy, sys
import jax
jax.distributed.initialize = functools.partial(
    jax.distributed.initialize, initialization_timeout=2
)
"""

THEN_BEGIN = """
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextmanager
def _begun(before: str, words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process of train.py that does something else before."""
    command = [sys.executable, "-c", before + THEN_BEGIN, str(SCRIPT), *words]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True
    ) as program:
        try:
            yield program
        finally:
            program.kill()


def test_a_mistake_in_one_process_of_two_ends_both(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    words = flags(tmp_path / "run")
    own = process_flags(2)
    with (
        _begun(FAIL, words + own[0]) as first,
        _begun(FAIL, words + own[1]) as second,
    ):
        _, mistaken = second.communicate(timeout=120)
        ended = time.monotonic()
        _, other = first.communicate(timeout=30)
        record_property("from a mistake to the end of both", time.monotonic() - ended)
    assert second.returncode == 3
    assert "TypeError: a mistake" in mistaken
    assert "train.py: one process of several has failed." in mistaken
    assert first.returncode in (3, -signal.SIGABRT)
    assert other.strip()


def test_what_one_process_refuses_ends_all_with_a_line(
    train: Train, tmp_path: Path
) -> None:
    # The second one looks for its data elsewhere.
    programs = train(
        tmp_path / "run",
        num_processes=2,
        own_settings=[{}, {"dataset__idx_dir": tmp_path / "nothing"}],
    )
    assert programs[1].wait() == 1
    last = programs[1].output.splitlines()[-1]
    assert last.startswith(f"train.py: idx_dir: there is no folder {tmp_path}")
    assert programs[0].wait(30) == 1
    last = programs[0].output.splitlines()[-1]
    assert last == "train.py: process 1 cannot start; its own message says why."
    assert not (tmp_path / "run").exists()


def test_processes_of_different_settings_are_refused_with_what_differs(
    train: Train, tmp_path: Path
) -> None:
    programs = train(tmp_path / "run", num_processes=2, own_settings=[{}, {"seed": 1}])
    assert [program.wait() for program in programs] == [1, 1]
    for program in programs:
        assert program.output.splitlines()[-1] == (
            "train.py: all processes must have the same settings and versions: seed is "
            "0 in process 0 and 1 in process 1. Start every process with one command "
            "and one installation."
        )
    assert not (tmp_path / "run").exists()


def test_a_folder_that_not_all_processes_see_is_refused(
    train: Train, tmp_path: Path
) -> None:
    folders = [tmp_path / "of_0", tmp_path / "of_1"]
    programs = train(tmp_path, num_processes=2, own_workdirs=folders)
    assert [program.wait() for program in programs] == [1, 1]
    for folder, program in zip(folders, programs, strict=True):
        assert program.output.splitlines()[-1] == (
            f"train.py: workdir {folder}: process 1 does not see what process 0 writes "
            "there. Choose a --workdir on a file system that all processes share."
        )
    assert not any(folder.exists() for folder in folders)


def test_what_the_first_process_refuses_ends_all_with_a_line(
    train: Train, tmp_path: Path
) -> None:
    # Only the first one locks the folder, and only it can find that it is a file.
    (tmp_path / "run").write_text("mine")
    programs = train(tmp_path / "run", num_processes=2)
    assert [program.wait(30) for program in programs] == [1, 1]
    assert "cannot be used" in programs[0].output.splitlines()[-1]
    last = programs[1].output.splitlines()[-1]
    assert last.startswith("train.py: ")
    assert not any("Traceback" in program.output for program in programs)


@pytest.mark.parametrize("process_id", [0, 1])
def test_a_process_that_waits_in_vain_for_the_others_ends(
    tmp_path: Path, process_id: int
) -> None:
    words = flags(tmp_path / "run") + process_flags(2)[process_id]
    with _begun(BE_IMPATIENT, words) as program:
        _, said = program.communicate(timeout=60)
    assert program.returncode in (3, -signal.SIGABRT)
    assert "DEADLINE_EXCEEDED" in said
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with _begun(
            "import runpy, sys",
            [
                *flags(tmp_path / "run"),
                f"--coordinator_address={address}",
                *("--num_processes=2", "--process_id=0"),
            ],
        ) as program:
            _, said = program.communicate(timeout=60)
    assert program.returncode == 1
    assert f"train.py: --coordinator_address={address}: another program" in said


def test_the_launcher_returns_the_code_of_what_was_killed_and_leaves_nothing(
    digits: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    workdir = tmp_path / "run"
    train = [sys.executable, str(SCRIPT), *flags(workdir, dataset__idx_dir=digits)]
    launch = [sys.executable, "-m", "bn_jax.cli", "launch", "--num_processes=2", "--"]
    with subprocess.Popen(
        [*launch, *train],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        try:
            assert until(lambda: steps(workdir))
            children = _children(launcher.pid)
            os.kill(children[1], signal.SIGKILL)
            killed = time.monotonic()
            _, said = launcher.communicate(timeout=60)
        finally:
            launcher.terminate()
    record_property("from SIGKILL to the launcher's end", time.monotonic() - killed)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert "[launch] process 1 was killed by SIGKILL (code 137)." in said
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]
