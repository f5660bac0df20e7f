"""Tar files that are not ImageNet's are refused, each by what is wrong with it."""

import io
import tarfile
from pathlib import Path

import pytest
from data.imagenet_files import (
    SYNSETS,
    TRAIN_TAR,
    VALIDATION_TAR,
    encode,
    picture,
    tar_bytes,
    training_files,
    validation_files,
    write_tars,
)

from bn_jax.data.preparation import imagenet
from bn_jax.data.preparation.imagenet import prepare_imagenet as prepare
from bn_jax.data.preparation.tar_index import index_validation_tar
from bn_jax.errors import UserError

JPEG = encode(picture(0))


@pytest.mark.parametrize("tar", [TRAIN_TAR, VALIDATION_TAR])
def test_a_missing_tar_is_named(tmp_path: Path, tar: str) -> None:
    folder = write_tars(tmp_path)
    (folder / tar).unlink()
    with pytest.raises(UserError, match=f"manual_dir: there is no {tar} in {folder}"):
        prepare(folder, tmp_path / "data", is_subset=True)


def test_both_tars_are_named_where_both_are_missing(tmp_path: Path) -> None:
    expected = f"there is no {VALIDATION_TAR} and no {TRAIN_TAR} in {tmp_path}"
    with pytest.raises(UserError, match=expected):
        prepare(tmp_path, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize(("tar", "number"), [(VALIDATION_TAR, 12), (TRAIN_TAR, 43)])
def test_fewer_images_than_the_official_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch, tars: Path, tmp_path: Path, tar: str, number: int
) -> None:
    if tar == TRAIN_TAR:
        counts = {**imagenet._NUM_IMAGES, "validation": 12}
        monkeypatch.setattr(imagenet, "_NUM_IMAGES", counts)
    with pytest.raises(UserError, match=rf"{tar}: expected \d+ images, .* {number}\."):
        prepare(tars, tmp_path)


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    folder = write_tars(tmp_path)
    (folder / TRAIN_TAR).write_bytes(b"<html>" * 500)
    with pytest.raises(
        UserError, match=rf"{TRAIN_TAR}: the file is damaged or is not a tar file"
    ):
        prepare(folder, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize("is_subset", [False, True])
def test_an_empty_tar_is_refused(tmp_path: Path, is_subset: bool) -> None:
    folder = write_tars(tmp_path, validation={})
    expected = (
        r"expected images, but found none\. Is it the complete official file\?$"
        if is_subset
        else r"expected 50000 images, but found none\. .* --subset accepts fewer\.$"
    )
    with pytest.raises(UserError, match=expected):
        prepare(folder, tmp_path / "data", is_subset=is_subset)


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    folder = write_tars(tmp_path, training=training_files() | {SYNSETS[0]: {}})
    expected = rf"{TRAIN_TAR}: expected images in {SYNSETS[0]}\.tar, but found none"
    with pytest.raises(UserError, match=expected):
        prepare(folder, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize(
    ("synset", "name", "expected"),
    [
        (
            "n00000000",
            "n00000000_1.JPEG",
            r"one tar file for each class, .* n00000000\.tar",
        ),
        (SYNSETS[0], f"{SYNSETS[1]}_1.JPEG", rf"{SYNSETS[0]}_<number>.JPEG, each once"),
        (SYNSETS[0], f"{SYNSETS[0]}_1.png", rf"{SYNSETS[0]}_<number>.JPEG, each once"),
    ],
)
def test_a_training_tar_with_anything_else_is_refused(
    tmp_path: Path, synset: str, name: str, expected: str
) -> None:
    folder = write_tars(tmp_path, training={synset: {name: JPEG}})
    with pytest.raises(UserError, match=expected):
        prepare(folder, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize("synset", SYNSETS[:2])
def test_an_image_that_comes_twice_is_refused(tmp_path: Path, synset: str) -> None:
    folder = write_tars(tmp_path)
    with tarfile.open(folder / TRAIN_TAR, "a") as tar:
        content = tar_bytes({f"{synset}_3.JPEG": JPEG})
        member = tarfile.TarInfo(f"{synset}.tar")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match=rf"each once, .*{synset}_3\.JPEG\."):
        prepare(folder, tmp_path / "data", is_subset=True)


def test_validation_images_without_a_label_are_refused(tmp_path: Path) -> None:
    path = write_tars(tmp_path) / VALIDATION_TAR
    expected = r"expected at most 11 validation images, but found .*_00000012\.JPEG"
    with pytest.raises(UserError, match=expected):
        index_validation_tar(path, 11 * ["n01440764"])


def test_the_tars_under_each_others_names_are_refused(tmp_path: Path) -> None:
    folder = write_tars(tmp_path)
    content = (folder / TRAIN_TAR).read_bytes()
    (folder / TRAIN_TAR).write_bytes((folder / VALIDATION_TAR).read_bytes())
    with pytest.raises(UserError, match=rf"{TRAIN_TAR}: .*ILSVRC2012_val_"):
        prepare(folder, tmp_path / "data", is_subset=True)
    (folder / VALIDATION_TAR).write_bytes(content)
    with pytest.raises(UserError, match=rf"{VALIDATION_TAR}: .*found n01440764.tar"):
        prepare(folder, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize("missing", [1, 5])
def test_validation_images_with_a_gap_are_refused(tmp_path: Path, missing: int) -> None:
    files = validation_files()
    del files[f"ILSVRC2012_val_{missing:08d}.JPEG"]
    folder = write_tars(tmp_path, validation=files)
    expected = rf"without a gap \(next: ILSVRC2012_val_{missing:08d}.JPEG\), but found"
    with pytest.raises(UserError, match=expected):
        prepare(folder, tmp_path / "data", is_subset=True)


def test_a_folder_in_a_tar_is_refused(tmp_path: Path) -> None:
    folder = write_tars(tmp_path)
    # The type of a tar's first member stands at byte 156.
    content = bytearray((folder / TRAIN_TAR).read_bytes())
    header = content[:512]
    header[156:157] = b"5"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (folder / TRAIN_TAR).write_bytes(bytes(header + content[512:]))
    with pytest.raises(
        UserError, match=r"expected only files, but n01440764.tar is not"
    ):
        prepare(folder, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(JPEG[: len(JPEG) // 2], id="cut off"),
        pytest.param(b"", id="empty"),
        pytest.param(encode(picture(0), "GIF"), id="neither JPEG nor PNG"),
    ],
)
def test_a_damaged_image_is_named(tmp_path: Path, content: bytes) -> None:
    name = f"{SYNSETS[0]}_1.JPEG"
    folder = write_tars(tmp_path, training={SYNSETS[0]: {name: content}})
    with pytest.raises(UserError, match=rf"{TRAIN_TAR}: {name}: Pillow cannot decode"):
        prepare(folder, tmp_path / "data", is_subset=True)
