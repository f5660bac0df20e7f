"""Checks of a data set, for all sources."""

import logging

import numpy as np
import pytest
from data.hostile_files import MiB, at_most

from bn_jax.data import ArrayDataset
from bn_jax.data.dataset import (
    ArraySplit,
    check_dataset,
    count_classes,
    evaluated_split,
)
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


def test_the_validation_split_is_checked_and_evaluated_if_there_is_one() -> None:
    assert evaluated_split(GOOD) == ("test", GOOD.test)
    with_split = GOOD._replace(validation=GOOD.test)
    assert evaluated_split(with_split) == ("validation", GOOD.test)
    bad = GOOD._replace(validation=ArraySplit(GOOD.test_images, np.array([0, 3])))
    with pytest.raises(UserError, match=r"labels of the validation .* from 0 to 3"):
        check_dataset(bad)


def test_arrays_that_are_too_large_for_the_memory_are_read_step_by_step() -> None:
    few = np.zeros((1, 2**20), np.uint8)
    assert ArraySplit(few, np.zeros(1)).is_in_memory
    # A view that repeats its only row needs no memory.
    many = np.broadcast_to(few, (5_000, 2**20))
    assert not ArraySplit(many, np.zeros(5_000)).is_in_memory


def test_a_high_label_without_others_fills_no_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with at_most(16 * MiB), caplog.at_level(logging.WARNING):
        assert count_classes("few", np.array([0, 2**30])) == 2**30 + 1
    assert "1073741823 of these classes have no image: 1, 2, 3, 4, 5, ..." in (
        caplog.text
    )
