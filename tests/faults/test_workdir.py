"""Folders that cannot be used, or not now; disks that are full."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults.conftest import Train
from faults.programs import assert_same_end, saved_state, steps, until

from bn_jax.training.checkpoints.manifest import damaged_files


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, in memory."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        # Mounting needs rights that few users have; filling a real disk is unsafe.
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _begun(workdir: Path, undisturbed: Path) -> None:
    """Copies a run that was killed after step 20."""
    shutil.copytree(undisturbed, workdir)
    (workdir / "summary.json").unlink()
    for step in (30, 40):
        shutil.rmtree(workdir / "checkpoints" / str(step))


@pytest.mark.parametrize("room", [0, 20_000, 60_000])
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
    train: Train, undisturbed: Callable[[int], Path], tmp_path: Path, room: int
) -> None:
    with _mounted(tmp_path / "disk", "size=8m") as disk:
        _begun(disk / "run", undisturbed(1))
        filler = disk / "filler"
        # Too little is left for the first file, for the metrics, or for a checkpoint.
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - room))
        (program,) = train(disk / "run")
        assert program.wait() == 1, program.output
        _assert_said(program.output)
        assert steps(disk / "run") == [20]
        assert damaged_files(disk / "run" / "checkpoints" / "20") == []
        filler.unlink()
        (program,) = train(disk / "run")
        assert program.wait() == 0, program.output
        assert_same_end(disk / "run", undisturbed(1))


def test_a_checkpoint_that_may_not_be_as_large_is_said(
    train: Train, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    _begun(workdir, undisturbed(1))
    before = saved_state(workdir, 20)
    # Adam keeps two arrays beside each parameter: 3 x 25 KB for the first layer alone.
    (program,) = train(workdir, max_file_bytes=20_000)
    assert program.wait() == 1, program.output
    _assert_said(program.output)
    assert steps(workdir) == [20]
    after = saved_state(workdir, 20)
    assert all((after[name] == before[name]).all() for name in before)
    (program,) = train(workdir)
    assert program.wait() == 0, program.output
    assert_same_end(workdir, undisturbed(1))


def _assert_said(output: str) -> None:
    # A thread of Orbax that is cut off may be writing its own trace at the same moment,
    # before our line or after it.
    said = re.findall(r"train\.py: .*", output)
    assert len(said) == 1, output
    reasons = ("could not be written", "No space left on device")
    assert any(reason in said[0] for reason in reasons)


def test_a_folder_that_can_only_be_read_is_refused(
    train: Train, tmp_path: Path
) -> None:
    with _mounted(tmp_path / "disk", "ro") as disk:
        (program,) = train(disk / "run")
        assert program.wait() == 1
    last = program.output.splitlines()[-1]
    assert "cannot be used" in last
    assert "Read-only file system" in last
    assert "Traceback" not in program.output


def test_a_file_in_the_folders_place_is_refused(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    (program,) = train(tmp_path / "run")
    assert program.wait() == 1
    assert "cannot be used" in program.output.splitlines()[-1]
    assert (tmp_path / "run").read_text() == "mine"


def test_the_folder_of_another_configuration_is_refused_with_what_differs(
    train: Train, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    shutil.copytree(undisturbed(1), tmp_path / "run")
    (program,) = train(tmp_path / "run", seed=3, norm__momentum=0.9)
    assert program.wait() == 1
    last = program.output.splitlines()[-1]
    assert "norm.momentum is 0.99 in the workdir and 0.9 in this command" in last
    assert "seed is 0 in the workdir and 3 in this command" in last


def test_a_second_run_in_one_folder_is_refused_and_the_first_goes_on(
    train: Train, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    expected = undisturbed(1)
    (first,) = train(tmp_path / "run")
    assert until(lambda: "normalization batch" in first.output)
    (second,) = train(tmp_path / "run")
    assert second.wait() == 1
    assert "another run is using it" in second.output.splitlines()[-1]
    assert first.wait() == 0, first.output
    assert_same_end(tmp_path / "run", expected)
