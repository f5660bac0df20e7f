"""Checks of a data set, for all sources."""

import logging

import numpy as np
import pytest
from data.hostile_files import MiB, at_most

from bn_jax.data.dataset import (
    ArraySplit,
    Dataset,
    check_dataset,
    count_classes,
    evaluated_split,
)
from bn_jax.errors import UserError

IMAGES = np.zeros((3, 2, 2, 1), np.uint8)
LABELS = np.array([0, 1, 2], np.int32)
GOOD = Dataset(
    name="squares",
    num_classes=3,
    train=ArraySplit(IMAGES, LABELS),
    test=ArraySplit(IMAGES[:2], LABELS[:2]),
)


def test_a_good_data_set_comes_back_as_it_is() -> None:
    assert check_dataset(GOOD) is GOOD


@pytest.mark.parametrize("split", ["train", "test", "validation"])
@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (IMAGES[:0], LABELS[:0], "contains no images"),
        (IMAGES[:2], LABELS, "has 2 images and 3 labels"),
        (IMAGES, LABELS - 1, "must be from 0 to 2, but are from -1 to 1"),
        (IMAGES, LABELS + 1, "must be from 0 to 2, but are from 1 to 3"),
    ],
)
def test_a_split_that_is_not_complete_is_refused(
    split: str, images: np.ndarray, labels: np.ndarray, expected: str
) -> None:
    bad = GOOD._replace(**{split: ArraySplit(images, labels)})
    with pytest.raises(UserError, match=f"squares: split '{split}'.* {expected}"):
        check_dataset(bad)


def test_images_of_one_size_have_no_crops() -> None:
    with pytest.raises(UserError, match=r"--crops: .* are all 2x2. Leave the flag"):
        GOOD.test.all_crops()


@pytest.mark.parametrize("split", ["test", "validation"])
def test_splits_of_different_image_sizes_are_refused(split: str) -> None:
    wide = np.zeros((2, 2, 3, 1), np.uint8)
    bad = GOOD._replace(**{split: ArraySplit(wide, LABELS[:2])})
    expected = rf"\(2, 2, 1\) \(uint8\) and those of '{split}' have \(2, 3, 1\)"
    with pytest.raises(UserError, match=expected):
        check_dataset(bad)


def test_the_validation_split_is_evaluated_if_there_is_one() -> None:
    assert evaluated_split(GOOD) == ("test", GOOD.test)
    with_split = GOOD._replace(validation=GOOD.train)
    assert evaluated_split(with_split) == ("validation", GOOD.train)


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
