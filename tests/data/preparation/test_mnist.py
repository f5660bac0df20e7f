"""MNIST prepared for tensorflow-datasets without TensorFlow."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.tfds_files import examples, run_without_tensorflow

from bn_jax.data import ArraySplit, Dataset, load_dataset
from bn_jax.data.mnist import load_mnist

pytestmark = pytest.mark.slow

PREPARE = "from bn_jax.cli import main; main(sys.argv[1:])"


class Prepared(NamedTuple):
    """MNIST as `bn-jax prepare mnist` left it."""

    data_dir: str
    output: str


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    data_dir = str(tmp_path_factory.mktemp("tfds"))
    data_dir_flag = f"--data_dir={data_dir}"
    output = run_without_tensorflow(PREPARE, "prepare", "mnist", data_dir_flag)
    return Prepared(data_dir, output)


@pytest.fixture(scope="module")
def read_back(prepared: Prepared) -> Dataset[ArraySplit]:
    return load_dataset("mnist", data_dir=prepared.data_dir)


@pytest.fixture(scope="module")
def mnist() -> Dataset[ArraySplit]:
    return load_mnist()


def test_prepared_mnist_has_the_order_of_the_stock_preparation(
    read_back: Dataset[ArraySplit],
) -> None:
    assert read_back.train.labels[:8].tolist() == [4, 1, 0, 7, 8, 1, 2, 7]


def test_prepared_mnist_holds_the_embedded_images_and_labels(
    read_back: Dataset[ArraySplit], mnist: Dataset[ArraySplit]
) -> None:
    for found, expected in (
        (read_back.train, mnist.train),
        (read_back.test, mnist.test),
    ):
        assert examples(found.images, found.labels) == examples(
            expected.images, expected.labels
        )


def test_prepared_mnist_differs_from_the_embedded_one_in_order_only(
    read_back: Dataset[ArraySplit], mnist: Dataset[ArraySplit]
) -> None:
    for read, embedded in zip(read_back, mnist, strict=True):
        assert np.shape(read) == np.shape(embedded)
        assert getattr(read, "dtype", None) == getattr(embedded, "dtype", None)
    assert (read_back.name, read_back.num_classes) == ("mnist", 10)


def test_plain_tfds_finds_the_prepared_mnist(
    prepared: Prepared, mnist: Dataset[ArraySplit]
) -> None:
    source = tfds.data_source("mnist", data_dir=prepared.data_dir, split="test")
    records = source.__getitems__(range(len(source)))
    images, labels = ([record[key] for record in records] for key in ("image", "label"))
    assert examples(images, labels) == examples(mnist.test.images, mnist.test.labels)


def test_prepare_says_how_to_read_what_it_wrote(prepared: Prepared) -> None:
    data_dir = prepared.data_dir
    assert prepared.output.splitlines()[-1] == (
        f"{Path(data_dir, 'mnist', '3.0.1')}: 10,000 test and 60,000 train images; "
        f'read it with tfds.data_source("mnist", data_dir="{data_dir}").'
    )


def test_preparing_again_keeps_what_is_there(prepared: Prepared) -> None:
    data_dir_flag = f"--data_dir={prepared.data_dir}"
    again = run_without_tensorflow(PREPARE, "prepare", "mnist", data_dir_flag)
    assert again.splitlines()[-1] == prepared.output.splitlines()[-1]
