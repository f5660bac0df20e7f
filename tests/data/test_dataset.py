"""Checks of a data set, for all sources."""

import numpy as np
import pytest

from bn_jax.data import ArrayDataset
from bn_jax.data.dataset import check_dataset
from bn_jax.errors import UserError

GOOD = ArrayDataset(
    name="squares",
    train_images=np.zeros((3, 2, 2, 1), np.uint8),
    train_labels=np.array([0, 1, 2], np.int32),
    test_images=np.zeros((2, 2, 2, 1), np.uint8),
    test_labels=np.array([2, 0], np.int32),
    num_classes=3,
)


def test_a_good_data_set_comes_back_as_it_is() -> None:
    assert check_dataset(GOOD) is GOOD


@pytest.mark.parametrize("split", ["training", "test"])
def test_a_split_without_images_is_refused(split: str) -> None:
    prefix = split.removesuffix("ing")
    arrays = {
        f"{prefix}_images": np.zeros((0, 2, 2, 1), np.uint8),
        f"{prefix}_labels": np.zeros(0, np.int32),
    }
    with pytest.raises(
        UserError, match=f"squares: the {split} split contains no images"
    ):
        check_dataset(GOOD._replace(**arrays))


def test_a_label_too_many_is_refused() -> None:
    bad = GOOD._replace(test_labels=np.zeros(3, np.int32))
    with pytest.raises(UserError, match=r"test split .* 2 images and 3 labels"):
        check_dataset(bad)


@pytest.mark.parametrize(("label", "range"), [(-1, "-1 to 2"), (3, "0 to 3")])
def test_a_label_that_is_no_class_is_refused(label: int, range: str) -> None:
    bad = GOOD._replace(train_labels=np.array([label, 0, 2], np.int32))
    with pytest.raises(
        UserError, match=f"training .* from 0 to 2, but are from {range}"
    ):
        check_dataset(bad)


def test_images_of_one_size_have_no_crops() -> None:
    with pytest.raises(UserError, match=r"--crops: .* are all 2x2. Leave the flag"):
        GOOD.test.all_crops()


def test_splits_of_different_image_sizes_are_refused() -> None:
    bad = GOOD._replace(test_images=np.zeros((2, 2, 3, 1), np.uint8))
    with pytest.raises(UserError, match=r"\(2, 2, 1\) .*and test images .*\(2, 3, 1\)"):
        check_dataset(bad)
