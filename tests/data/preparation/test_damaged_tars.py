"""Tar files that are damaged or not whole are refused, whatever is missing."""

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
    write_tars,
)

from bn_jax.data.preparation.imagenet import prepare_imagenet as prepare
from bn_jax.data.preparation.tar_index import index_training_tar, index_validation_tar
from bn_jax.errors import UserError

JPEG = encode(picture(0))
FIRST = "ILSVRC2012_val_00000001.JPEG"


def header(path: Path, number: int, inside: int | None = None) -> int:
    """Bytes before the header of a file in a tar file, or in a file of it."""
    start = 0
    with tarfile.open(path) as tar:
        member = tar.getmembers()[number if inside is None else inside]
        if inside is not None:
            start = member.offset_data
            with tarfile.open(fileobj=tar.extractfile(member)) as inner:
                member = inner.getmembers()[number]
    return start + member.offset


@pytest.mark.parametrize("tar", [TRAIN_TAR, VALIDATION_TAR])
@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_a_tar_that_is_cut_off_is_refused(
    tmp_path: Path, tar: str, fraction: float
) -> None:
    path = write_tars(tmp_path) / tar
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(UserError, match=rf"{tar}.*Download it again"):
        prepare(tmp_path, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize(
    ("tar", "place"), [(TRAIN_TAR, (2,)), (TRAIN_TAR, (4, 1)), (VALIDATION_TAR, (6,))]
)
@pytest.mark.parametrize("content", [b"\xff", b"\0"])
def test_a_damaged_header_is_not_taken_for_the_end(
    tmp_path: Path, tar: str, place: tuple[int, ...], content: bytes
) -> None:
    path = write_tars(tmp_path) / tar
    with path.open("r+b") as file:
        file.seek(header(path, *place))
        file.write(512 * content)
    expected = (
        rf"{tar}.*the final zeros at byte \d+, but found other bytes\. .*Download it"
    )
    with pytest.raises(UserError, match=expected):
        prepare(tmp_path, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize("tar", [TRAIN_TAR, VALIDATION_TAR])
@pytest.mark.parametrize("kept", [0, 100, 511])
def test_a_tar_that_is_cut_between_files_or_in_a_header_is_refused(
    tmp_path: Path, tar: str, kept: int
) -> None:
    path = write_tars(tmp_path) / tar
    start = header(path, 3)
    path.write_bytes(path.read_bytes()[: start + kept])
    expected = rf"{tar}: .*zeros at byte {start}, but found nothing\. .*Download it"
    with pytest.raises(UserError, match=expected):
        prepare(tmp_path, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize("num_images", [0, 2])
def test_a_class_whose_tar_has_no_end_is_named(tmp_path: Path, num_images: int) -> None:
    names = [f"{SYNSETS[0]}_{i}.JPEG" for i in range(num_images)]
    # Their blocks are 1,536 bytes, and no zeros follow.
    content = tar_bytes(dict.fromkeys(names, 1024 * b"a"))[: 1536 * num_images]
    rest = tar_bytes({f"{SYNSETS[1]}_1.JPEG": JPEG})
    path = tmp_path / TRAIN_TAR
    path.write_bytes(
        tar_bytes({f"{SYNSETS[0]}.tar": content, f"{SYNSETS[1]}.tar": rest})
    )
    expected = rf": {SYNSETS[0]}\.tar: expected .* byte {1536 * num_images}, but"
    with pytest.raises(UserError, match=expected):
        index_training_tar(path, SYNSETS)


@pytest.mark.parametrize("num_blocks", [1, 20])
def test_any_number_of_zeros_is_an_end(tmp_path: Path, num_blocks: int) -> None:
    path = tmp_path / VALIDATION_TAR
    content = tar_bytes({FIRST: bytes(1024)})[: 512 + 1024]
    path.write_bytes(content + num_blocks * 512 * b"\0")
    images = index_validation_tar(path, ["n01440764"])
    assert [image.name for image in images] == [FIRST]


def test_a_hole_in_a_tar_is_not_taken_for_its_end(tmp_path: Path) -> None:
    path = write_tars(tmp_path) / TRAIN_TAR
    content = path.read_bytes()[: header(path, 2)]
    path.write_bytes(content + (2**20 + 512) * b"\0")
    with pytest.raises(UserError, match=r"found more than 1048576 zeros"):
        prepare(tmp_path, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize("place", [(4,), (7, 4)])
def test_what_ends_within_a_file_is_named_with_it(
    tmp_path: Path, place: tuple[int, ...]
) -> None:
    path = write_tars(tmp_path) / TRAIN_TAR
    content = bytearray(path.read_bytes())
    start = header(path, *place)
    # The size stands at byte 124 of a header, and the sum of its bytes at 148.
    block = content[start : start + 512]
    block[124:136] = b"%011o\0" % 10**6
    block[148:156] = 8 * b" "
    block[148:156] = b"%06o\0 " % sum(block)
    content[start : start + 512] = block
    path.write_bytes(content)
    name = f"{SYNSETS[4]}_8.JPEG" if len(place) > 1 else f"{SYNSETS[4]}.tar"
    with pytest.raises(
        UserError, match=rf"the tar file ends within {name}, .*Download"
    ):
        prepare(tmp_path, tmp_path / "data", is_subset=True)
