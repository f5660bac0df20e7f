"""A preparation of ImageNet that is interrupted or killed goes on, or is refused."""

import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data.imagenet_files import SYNSETS, encode, picture, write_tars
from data.imagenet_records import in_order, records

import bn_jax.progress
from bn_jax.data import load_dataset
from bn_jax.data.preparation import imagenet
from bn_jax.data.preparation.imagenet import prepare_imagenet as prepare
from bn_jax.data.preparation.rgb_jpeg import rgb_jpeg
from bn_jax.errors import UserError


def interrupted(
    monkeypatch: pytest.MonkeyPatch, tars: Path, data_dir: Path, *, after: int
) -> Path:
    """A preparation that ends after some images; gives back what it leaves."""
    names: list[str] = []

    def check(content: bytes, *, name: str) -> bytes:
        names.append(name)
        if len(names) > after:
            raise KeyboardInterrupt
        return rgb_jpeg(content, name=name)

    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "rgb_jpeg", check)
        with pytest.raises(KeyboardInterrupt):
            prepare(tars, data_dir, is_subset=True)
    (folder,) = (data_dir / "imagenet2012").iterdir()
    return folder


def finished(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("imagenet2012-*")}


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("after", [0, 7, 30, 54])
def test_a_preparation_goes_on_where_it_was_interrupted(
    monkeypatch: pytest.MonkeyPatch, tars: Path, tmp_path: Path, after: int
) -> None:
    folder = interrupted(monkeypatch, tars, tmp_path / "twice", after=after)
    before = finished(folder)
    assert bool(before) == (after > 0)
    again = finished(prepare(tars, tmp_path / "twice", is_subset=True))
    assert before.items() <= again.items()
    prepare(tars, tmp_path / "once", is_subset=True)
    for split in ("train", "validation"):
        assert in_order(tmp_path / "twice", split) == in_order(tmp_path / "once", split)


@pytest.mark.usefixtures("many_files")
def test_progress_goes_on_from_what_is_finished(
    monkeypatch: pytest.MonkeyPatch,
    tars: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    interrupted(monkeypatch, tars, tmp_path, after=30)
    capfd.readouterr()
    monkeypatch.setattr(bn_jax.progress, "_SECONDS_BETWEEN_LINES", 0)
    prepare(tars, tmp_path, is_subset=True)
    told = capfd.readouterr().err
    assert re.search(r"prepare imagenet2012: (\d+) of \1, 00:00 left\n", told)


_KILLED = """
import os, sys
from pathlib import Path
from tensorflow_datasets.core.utils.shard_utils import ShardConfig
from bn_jax.data.preparation import imagenet
ShardConfig.min_shard_size = 1
before, names = imagenet.rgb_jpeg, []
def check(content, *, name):
    names.append(name)
    if len(names) == 30:
        os.kill(os.getpid(), 9)
    return before(content, name=name)
imagenet.rgb_jpeg = check
imagenet.prepare_imagenet(*map(Path, sys.argv[1:]), is_subset=True)
"""


@pytest.mark.usefixtures("many_files")
def test_a_preparation_that_was_killed_goes_on(tars: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(tars), str(tmp_path / "twice")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "twice" / "imagenet2012").iterdir()
    before = finished(folder)
    again = finished(prepare(tars, tmp_path / "twice", is_subset=True))
    assert len(before) > 8
    assert before.items() <= again.items()
    prepare(tars, tmp_path / "once", is_subset=True)
    for split in ("train", "validation"):
        twice, once = (in_order(tmp_path / name, split) for name in ("twice", "once"))
        assert twice == once


@pytest.mark.usefixtures("many_files")
def test_an_interrupted_preparation_is_not_taken_for_a_data_set(
    monkeypatch: pytest.MonkeyPatch, tars: Path, tmp_path: Path
) -> None:
    interrupted(monkeypatch, tars, tmp_path, after=30)
    with pytest.raises(UserError, match=r"nothing is prepared .*bn-jax prepare image"):
        load_dataset("imagenet2012", data_dir=str(tmp_path), image_size=8)


@pytest.mark.usefixtures("many_files")
def test_files_of_other_tars_are_not_taken_over(
    monkeypatch: pytest.MonkeyPatch, tars: Path, tmp_path: Path
) -> None:
    interrupted(monkeypatch, tars, tmp_path / "data", after=30)
    name = f"{SYNSETS[3]}_1.JPEG"
    other = write_tars(tmp_path / "tars", {SYNSETS[3]: {name: encode(picture(0))}})
    prepare(other, tmp_path / "data", is_subset=True)
    assert list(records(tmp_path / "data", "train")) == [name]


def test_two_preparations_at_once_are_refused(tars: Path, tmp_path: Path) -> None:
    folder = tmp_path / "imagenet2012" / "incomplete.bn_jax_5.1.0"
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is preparing it now"):
        prepare(tars, tmp_path, is_subset=True)
    os.close(descriptor)


def test_a_preparation_that_another_one_completes_meanwhile_is_taken(
    monkeypatch: pytest.MonkeyPatch, tars: Path, tmp_path: Path
) -> None:
    plan = imagenet._plan
    written = {}

    def plan_while_another_one_ends(*tars_and_all: Any, **settings: Any) -> Any:
        shards = plan(*tars_and_all, **settings)
        monkeypatch.undo()
        written.update(finished(prepare(tars, tmp_path, is_subset=True)))
        return shards

    monkeypatch.setattr(imagenet, "_plan", plan_while_another_one_ends)
    folder = prepare(tars, tmp_path, is_subset=True)
    assert written
    assert finished(folder) == written
    assert list(folder.parent.iterdir()) == [folder]
