"""Damaged checkpoints: found, named and passed over; nothing is ever deleted."""

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from faults.conftest import Train
from faults.programs import (
    LOST_A_PROCESS,
    SECONDS_TO_NOTICE,
    Program,
    assert_same_end,
    steps,
    until,
    wait_for_all,
)

from bn_jax.training.checkpoints.manifest import damaged_files, write_manifest


def _payload(step: Path) -> Path:
    """The largest file of a checkpoint."""
    files = [path for path in (step / "state").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, tuple[Callable[[Path], Path], Callable[[Path], None], str]] = {
    "one_bit_flipped": (_payload, _flip_a_bit, "has changed"),
    "a_file_cut": (_payload, _cut, "bytes instead of"),
    "a_file_deleted": (_payload, Path.unlink, "is missing"),
    "the_manifest_deleted": (
        lambda step: step / "manifest.json",
        Path.unlink,
        "cannot be read",
    ),
}


@pytest.fixture
def interrupted(
    undisturbed: Callable[[int], Path], tmp_path: Path
) -> Callable[[int], Path]:
    """Copies a run that was killed when all was saved and before it said so."""

    def interrupted(num_processes: int) -> Path:
        shutil.copytree(undisturbed(num_processes), tmp_path / "run")
        (tmp_path / "run" / "summary.json").unlink()
        return tmp_path / "run"

    return interrupted


def _content(folder: Path) -> dict[str, str]:
    """Checksums of all files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("damage", "num_processes"),
    [*((name, 1) for name in DAMAGE), ("one_bit_flipped", 2)],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    train: Train,
    interrupted: Callable[[int], Path],
    undisturbed: Callable[[int], Path],
    damage: str,
    num_processes: int,
) -> None:
    workdir = interrupted(num_processes)
    newest = workdir / "checkpoints" / "40"
    choose, harm, words = DAMAGE[damage]
    victim = choose(newest)
    harm(victim)
    programs = train(workdir, num_processes=num_processes)
    assert wait_for_all(programs) == [0] * num_processes, programs[0].output
    output = programs[0].output
    name = str(victim.relative_to(newest))
    assert "checkpoint 40 is damaged" in output
    assert any(name in line and words in line for line in output.splitlines()), output
    assert "resumes after step 30." in output
    assert damaged_files(workdir / "damaged" / "40") != []
    assert_same_end(workdir, undisturbed(num_processes))


def test_a_run_without_an_intact_checkpoint_ends_and_deletes_nothing(
    train: Train, interrupted: Callable[[int], Path]
) -> None:
    workdir = interrupted(1)
    for step in steps(workdir):
        _flip_a_bit(_payload(workdir / "checkpoints" / str(step)))
    before = _content(workdir / "checkpoints")
    (program,) = train(workdir)
    assert program.wait() == 1
    last = program.output.splitlines()[-1]
    assert "all checkpoints are damaged ([20, 30, 40])" in last
    assert "Traceback" not in program.output
    assert _content(workdir / "checkpoints") == before


def test_a_checkpoint_of_a_newer_format_is_refused_and_nothing_is_changed(
    train: Train, interrupted: Callable[[int], Path]
) -> None:
    workdir = interrupted(1)
    newest = workdir / "checkpoints" / "40"
    (path,) = [p for p in (newest / "run").rglob("*") if p.name == "metadata"]
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "format_version": 99}))
    write_manifest(newest)
    before = _content(workdir)
    (program,) = train(workdir)
    assert program.wait() == 1
    assert "checkpoint 40 has format 99" in program.output.splitlines()[-1]
    assert "Traceback" not in program.output
    assert _content(workdir) == before


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before_it_intact(
    train: Train,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    num_processes: int,
) -> None:
    expected = undisturbed(num_processes)
    workdir = tmp_path / "run"
    programs = train(workdir, num_processes=num_processes)

    _catch_writing(programs, workdir)
    half = _half_written(workdir)
    for program in programs:
        program.send(signal.SIGKILL)
    assert wait_for_all(programs) == [128 + signal.SIGKILL] * num_processes
    assert half == _half_written(workdir)
    newest = steps(workdir)[-1]
    assert damaged_files(workdir / "checkpoints" / str(newest)) == []
    programs = train(workdir, num_processes=num_processes)
    assert wait_for_all(programs) == [0] * num_processes, programs[0].output
    assert f"resumes after step {newest}." in programs[0].output
    assert_same_end(workdir, expected)


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_end_when_a_process_is_killed_while_all_write_a_checkpoint(
    train: Train,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    victim: int,
) -> None:
    programs = train(tmp_path / "run", num_processes=2)
    _catch_writing(programs, tmp_path / "run")
    programs[victim].send(signal.SIGKILL)
    programs[1 - victim].send(signal.SIGCONT)
    killed = time.monotonic()
    code = programs[1 - victim].wait(SECONDS_TO_NOTICE)
    record_property("from SIGKILL to the end of the other", time.monotonic() - killed)
    # 1 would mean that the user can mend it.
    assert code in LOST_A_PROCESS, programs[1 - victim].output


def _catch_writing(programs: Sequence[Program], workdir: Path) -> None:
    """Stops all processes while they write a checkpoint that is not the first."""

    def send(number: int) -> None:
        for program in programs:
            program.send(number)

    def is_caught_writing() -> bool:
        if not steps(workdir) or not _half_written(workdir):
            return False
        send(signal.SIGSTOP)
        if _half_written(workdir):
            return True
        send(signal.SIGCONT)
        return False

    assert until(is_caught_writing)


def _half_written(workdir: Path) -> list[str]:
    folder = workdir / "checkpoints"
    return sorted(path.name for path in folder.glob("*.orbax-checkpoint-tmp*"))
