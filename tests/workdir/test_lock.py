"""One run at a time in a folder."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bn_jax.errors import UserError
from bn_jax.workdir.files import claim_workdir
from bn_jax.workdir.lock import locked

CONFIG = {"seed": 0}


def enter(workdir: Path) -> None:
    with locked(workdir):
        pass


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path) -> None:
    expected = f"workdir {tmp_path}: another run is using it now"
    with locked(tmp_path), pytest.raises(UserError, match=expected):
        enter(tmp_path)


def test_another_process_is_refused_too(tmp_path: Path) -> None:
    program = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'a'), 6)"
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    with locked(tmp_path):
        held = subprocess.run(command, capture_output=True, text=True, check=False)
    freed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "BlockingIOError" in held.stderr
    assert freed.returncode == 0, freed.stderr


def test_a_folder_is_free_again_after_its_run(tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    enter(tmp_path)
    enter(tmp_path)


def test_a_lock_that_its_run_has_just_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, opened = fcntl.flock, []

    def remove_once(descriptor: int, operation: int) -> None:
        opened.append(descriptor)
        if len(opened) == 1:
            (tmp_path / "lock").unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_once)
    with locked(tmp_path):
        assert (tmp_path / "lock").exists()
        monkeypatch.undo()
        with pytest.raises(UserError, match="another run is using it"):
            enter(tmp_path)
    assert len(opened) == 2


def test_two_folders_are_used_at_the_same_time(tmp_path: Path) -> None:
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        pass


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse_lock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse_lock)
    enter(tmp_path)
    assert "cannot be locked ([Errno 37] No locks available)" in caplog.text


def test_a_folder_that_a_run_made_and_left_empty_is_removed(tmp_path: Path) -> None:
    enter(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_a_run_has_written_to_stays(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        claim_workdir(tmp_path / "new", CONFIG)
    assert (tmp_path / "new" / "config.json").exists()


def test_an_empty_folder_that_was_there_before_stays_empty(tmp_path: Path) -> None:
    enter(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be used \(.*Not a directory"):
        enter(tmp_path / "file" / "run")


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run"])
def test_an_address_is_refused_and_no_folder_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = "must be a folder, but is an address. Mount the bucket"
    with pytest.raises(UserError, match=expected), locked(Path(address)):
        pass
    assert list(tmp_path.iterdir()) == []
