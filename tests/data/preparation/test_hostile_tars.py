"""Tar files that mean harm: their names write nothing, their sizes fill no memory."""

import io
import tarfile
from pathlib import Path

import pytest
from data.hostile_files import MiB, at_most, tar_header
from data.imagenet_files import SYNSETS, TRAIN_TAR, VALIDATION_TAR, write_tars

from bn_jax.data.preparation.imagenet import prepare_imagenet as prepare
from bn_jax.data.preparation.tar_index import index_training_tar, index_validation_tar
from bn_jax.errors import UserError

FIRST = "ILSVRC2012_val_00000001.JPEG"


@pytest.mark.parametrize("tar", [TRAIN_TAR, VALIDATION_TAR])
@pytest.mark.parametrize("name", ["../evil", "/evil", f"../{FIRST}", "a\nb"])
def test_a_name_outside_of_the_folder_is_refused(
    tmp_path: Path, tar: str, name: str
) -> None:
    folder = write_tars(tmp_path / "tars")
    with tarfile.open(folder / tar, "a") as file:
        file.addfile(tarfile.TarInfo(name), io.BytesIO())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=rf"{tar}: expected .*, but found") as seen:
        prepare(folder, tmp_path / "data", is_subset=True)
    assert "\n" not in str(seen.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_outside_of_the_folder_in_the_tar_of_a_class_is_refused(
    tmp_path: Path,
) -> None:
    name = f"../{SYNSETS[0]}_1.JPEG"
    folder = write_tars(tmp_path, training={SYNSETS[0]: {name: b"image"}})
    with pytest.raises(UserError, match=rf"{TRAIN_TAR}: expected .*, but found .*\.\."):
        prepare(folder, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo(FIRST)
    member.type, member.linkname = kind, "/etc/passwd"
    path = tmp_path / VALIDATION_TAR
    with tarfile.open(path, "w") as tar:
        tar.addfile(member)
    with pytest.raises(UserError, match=f"expected only files, but {FIRST} is not"):
        index_validation_tar(path, SYNSETS)


@pytest.mark.parametrize("size", [2**33, 2**62, 2**70, 2**87])
@pytest.mark.parametrize("kind", list(b"0LKxgS"))
def test_a_header_that_says_an_absurd_size_fills_no_memory(
    tmp_path: Path, kind: int, size: int
) -> None:
    path = tmp_path / TRAIN_TAR
    header = tar_header(f"{SYNSETS[0]}.tar", size, bytes([kind]))
    path.write_bytes(header + bytes(2048))
    with at_most(16 * MiB), pytest.raises(UserError, match=str(path)):
        index_training_tar(path, SYNSETS)


def test_an_image_of_many_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / VALIDATION_TAR
    path.write_bytes(tar_header(FIRST, 2**29))
    with path.open("r+b") as file:
        # A hole, which needs no space on the disk.
        file.truncate(512 + 2**29 + 1024)
    with pytest.raises(UserError, match=f"{FIRST} has 536870912 bytes; an image may"):
        index_validation_tar(path, SYNSETS)
