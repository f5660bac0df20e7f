"""IDX files: what is read from good ones, and how each kind of bad one is refused."""

import contextlib
import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.hostile_files import MiB, at_most, zipped_zeros
from data.idx_files import contents, idx_bytes, write_idx, write_idx_folder
from hypothesis import given
from hypothesis import strategies as st

from bn_jax.data.idx import load_idx_folder, read_idx
from bn_jax.errors import UserError

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
CONTENT = idx_bytes(ARRAY)
COMPRESSED = gzip.compress(CONTENT)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idx") / "file"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_idx_folder(tmp_path / "digits", num_train=12, num_test=5)


def read_content(path: Path, content: bytes) -> np.ndarray:
    path.write_bytes(content)
    return read_idx(path)


@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 3, 4)])
def test_a_plain_file_gives_the_array_that_was_written(
    path: Path, shape: tuple[int, ...]
) -> None:
    read = read_content(path, idx_bytes(ARRAY.reshape(shape)))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, ARRAY.reshape(shape))


def test_a_compressed_file_is_told_by_its_content_and_not_by_its_name(
    path: Path,
) -> None:
    np.testing.assert_array_equal(read_content(path, COMPRESSED), ARRAY)


def test_a_file_without_elements_gives_an_empty_array(path: Path) -> None:
    empty = np.zeros((0, 28, 28), np.uint8)
    assert read_content(path, idx_bytes(empty)).shape == (0, 28, 28)


@given(st.integers(0, len(CONTENT) - 1))
def test_a_plain_file_that_is_cut_off_anywhere_is_refused(
    path: Path, length: int
) -> None:
    with pytest.raises(UserError, match=str(path)):
        read_content(path, CONTENT[:length])


@given(st.integers(0, len(COMPRESSED) - 1))
def test_a_compressed_file_that_is_cut_off_anywhere_is_refused(
    path: Path, length: int
) -> None:
    with pytest.raises(UserError, match=str(path)):
        read_content(path, COMPRESSED[:length])


@given(st.binary(max_size=32))
def test_any_content_gives_an_array_or_is_refused(path: Path, rest: bytes) -> None:
    content = b"\0\0\x08" + rest
    with contextlib.suppress(UserError):
        assert idx_bytes(read_content(path, content)) == content


def test_an_empty_file_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match=r"too short for an IDX file \(0 bytes\)"):
        read_content(path, b"")


@pytest.mark.parametrize("start", [b"\x01\0\x08", b"\0\x01\x08", b"PNG"])
def test_another_magic_number_is_refused(path: Path, start: bytes) -> None:
    expected = f"begins with 00 00 08; this one begins with {start.hex(' ')}"
    with pytest.raises(UserError, match=expected):
        read_content(path, start + CONTENT[3:])


@pytest.mark.parametrize("kind", [0x09, 0x0B, 0x0C, 0x0D, 0x0E])
def test_elements_that_are_no_unsigned_bytes_are_refused(path: Path, kind: int) -> None:
    with pytest.raises(UserError, match="expected an IDX file of unsigned bytes"):
        read_content(path, idx_bytes(ARRAY, magic=bytes([0, 0, kind])))


def test_a_header_that_is_cut_off_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match="header of 3 dimensions is cut off"):
        read_content(path, CONTENT[:15])


def test_a_short_file_is_told_what_its_header_promises(path: Path) -> None:
    expected = "says 2x3x4 values, so 24 bytes must follow it, but there are 23"
    with pytest.raises(UserError, match=expected):
        read_content(path, CONTENT[:-1])


def test_a_file_that_is_too_long_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match="24 bytes must follow it, but there are more"):
        read_content(path, CONTENT + b"\0")


def test_a_compressed_file_with_a_wrong_byte_is_refused(path: Path) -> None:
    damaged = bytearray(COMPRESSED)
    damaged[-6] ^= 1  # A byte of the checksum.
    with pytest.raises(UserError, match=r"damaged or cannot be read \(CRC"):
        read_content(path, bytes(damaged))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read .*No such file"):
        read_idx(tmp_path / "nothing")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_gives_images_with_a_channel_and_labels_as_classes(
    tmp_path: Path, suffix: str
) -> None:
    folder = tmp_path / "letters"
    write_idx_folder(folder, num_train=12, num_test=5, suffix=suffix)
    data = load_idx_folder(folder)
    assert (data.name, data.num_classes) == ("letters", 10)
    assert data.train.images.shape == (12, 28, 28, 1)
    assert data.test.images.shape == (5, 28, 28, 1)
    assert data.train.images.dtype == np.uint8
    assert data.test.labels.dtype == np.int32
    # Brightness tells the class of these images.
    brightest = data.train.images[..., 0].mean(axis=2).argmax(axis=1)
    np.testing.assert_array_equal(brightest // 2, data.train.labels)


def test_names_with_a_dot_before_idx_are_found(folder: Path) -> None:
    expected = load_idx_folder(folder)
    for path in list(folder.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    np.testing.assert_equal(contents(load_idx_folder(folder)), contents(expected))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"idx_dir: there is no folder .*nothing"):
        load_idx_folder(tmp_path / "nothing")


@pytest.mark.parametrize("prefix", ["train", "t10k"])
@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
def test_a_file_that_is_missing_from_a_folder_is_named(
    folder: Path, prefix: str, kind: str
) -> None:
    name = f"{prefix}-{kind}-ubyte"
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"there is no {name} or {name}.gz"):
        load_idx_folder(folder)


def test_more_images_than_labels_are_refused(folder: Path) -> None:
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(11))
    with pytest.raises(UserError, match=r"split 'train' .* 12 images and 11 labels"):
        load_idx_folder(folder)


def test_images_may_have_any_size(folder: Path) -> None:
    for prefix, number in (("train", 12), ("t10k", 5)):
        images = np.arange(number * 5 * 7).reshape(number, 5, 7) % 256
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
    assert load_idx_folder(folder).train.images.shape == (12, 5, 7, 1)


def test_splits_of_two_sizes_are_refused(folder: Path) -> None:
    write_idx(folder / "t10k-images-idx3-ubyte", np.zeros((5, 28, 27)))
    with pytest.raises(UserError, match=r"\(28, 28, 1\) .* \(28, 27, 1\)"):
        load_idx_folder(folder)


def test_swapped_files_of_images_and_labels_are_refused(folder: Path) -> None:
    images, labels = (
        folder / f"train-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")
    )
    swapped = images.read_bytes(), labels.read_bytes()
    labels.write_bytes(swapped[0])
    images.write_bytes(swapped[1])
    with pytest.raises(
        UserError, match=r"train-images must contain grey images.* \(12,\)"
    ):
        load_idx_folder(folder)


def test_images_in_place_of_labels_are_refused(folder: Path) -> None:
    images = (folder / "train-images-idx3-ubyte").read_bytes()
    (folder / "train-labels-idx1-ubyte").write_bytes(images)
    with pytest.raises(UserError, match=r"train-labels .* Is it a file of images"):
        load_idx_folder(folder)


@pytest.mark.parametrize("highest", [0, 3, 46, 255])
@pytest.mark.parametrize(("prefix", "number"), [("train", 12), ("t10k", 5)])
def test_the_highest_label_of_both_files_says_how_many_classes_there_are(
    folder: Path, prefix: str, number: int, highest: int
) -> None:
    for name, count in (("train", 12), ("t10k", 5)):
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.zeros(count))
    labels = np.zeros(number)
    labels[number // 2] = highest
    write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
    assert load_idx_folder(folder).num_classes == highest + 1


def test_a_set_without_images_is_refused(folder: Path) -> None:
    write_idx(folder / "train-images-idx3-ubyte", np.zeros((0, 28, 28)))
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(0))
    with pytest.raises(UserError, match="split 'train' contains no images"):
        load_idx_folder(folder)


def test_a_small_file_that_unpacks_to_much_fills_no_memory(path: Path) -> None:
    content = zipped_zeros(CONTENT, 256 * MiB)
    assert len(content) < 2 * MiB
    expected = r"24 bytes must follow it, but there are more"
    with at_most(16 * MiB), pytest.raises(UserError, match=expected):
        read_content(path, content)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("sizes", [(2**32 - 1,) * 3, (2**16, 2**10, 2**10), (1,) * 9])
def test_a_header_that_says_an_absurd_size_is_refused(
    path: Path, sizes: tuple[int, ...], compress: Callable[[bytes], bytes]
) -> None:
    header = b"\0\0\x08" + bytes([len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)
    expected = f"says {'x'.join(map(str, sizes))} values, .* 8 dimensions and 4 GiB"
    with at_most(16 * MiB), pytest.raises(UserError, match=expected):
        read_content(path, compress(header + bytes(100)))


def test_a_header_that_says_more_than_there_is_fills_no_memory(path: Path) -> None:
    header = b"\0\0\x08\x01" + struct.pack(">I", 2**32 - 1)
    with at_most(16 * MiB), pytest.raises(UserError, match="but there are 100"):
        read_content(path, gzip.compress(header + bytes(100)))
