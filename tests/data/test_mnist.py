"""The embedded MNIST is the canonical one, and a damaged copy is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from data.idx_files import contents

from bn_jax.data import ArraySplit, Dataset
from bn_jax.data.mnist import embedded_mnist_folder, load_mnist
from bn_jax.errors import UserError

FILES = sorted(path.name for path in embedded_mnist_folder().glob("*.gz"))


@pytest.fixture(scope="module")
def mnist() -> Dataset[ArraySplit]:
    return load_mnist()


@pytest.fixture
def copied_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded_mnist_folder(), tmp_path / "copy"))


@pytest.mark.shapes
def test_there_are_60000_and_10000_grey_images_of_28x28_pixels(
    mnist: Dataset[ArraySplit],
) -> None:
    assert mnist.train.images.shape == (60_000, 28, 28, 1)
    assert mnist.test.images.shape == (10_000, 28, 28, 1)
    assert mnist.train.labels.shape == (60_000,)
    assert mnist.test.labels.shape == (10_000,)
    assert mnist.train.images.dtype == mnist.test.images.dtype == np.uint8
    assert mnist.train.labels.dtype == mnist.test.labels.dtype == np.int32


def test_the_set_is_called_mnist_and_has_ten_classes(
    mnist: Dataset[ArraySplit],
) -> None:
    assert (mnist.name, mnist.num_classes) == ("mnist", 10)


def test_the_first_labels_are_the_known_ones(mnist: Dataset[ArraySplit]) -> None:
    assert mnist.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_each_class_has_its_known_number_of_images(mnist: Dataset[ArraySplit]) -> None:
    train, test = np.bincount(mnist.train.labels), np.bincount(mnist.test.labels)
    assert train.tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    ]
    assert test.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_the_mean_pixel_is_the_known_one(mnist: Dataset[ArraySplit]) -> None:
    # 0.1307 is the mean that everybody normalizes MNIST with.
    assert mnist.train.images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)


def test_a_copy_of_the_files_gives_the_same_data(
    mnist: Dataset[ArraySplit], copied_folder: Path
) -> None:
    np.testing.assert_equal(contents(load_mnist(copied_folder)), contents(mnist))


@pytest.mark.parametrize("name", FILES)
def test_a_single_wrong_bit_is_refused(copied_folder: Path, name: str) -> None:
    content = bytearray((copied_folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied_folder / name).write_bytes(bytes(content))
    with pytest.raises(UserError, match=f"{name} is damaged: its SHA-256 should be"):
        load_mnist(copied_folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copied_folder: Path, name: str) -> None:
    (copied_folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing. Install bn_jax again"):
        load_mnist(copied_folder)


def test_an_unpacked_copy_of_a_file_does_not_take_its_place(
    mnist: Dataset[ArraySplit], copied_folder: Path
) -> None:
    # Plain files come first in a folder of IDX files; here they are not checked.
    (copied_folder / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\0")
    np.testing.assert_equal(contents(load_mnist(copied_folder)), contents(mnist))
