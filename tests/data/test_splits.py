"""Slices and sums of the parts of a data set in memory."""

import logging

import numpy as np
import pytest

from bn_jax.data.dataset import ArraySplit, Dataset
from bn_jax.data.splits import SplitNames, choose_splits
from bn_jax.errors import UserError

TRAIN, TEST = np.arange(10), np.arange(4)


def image_of(labels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(labels[:, None, None, None], (len(labels), 2, 2, 1))


DATA = Dataset(
    "ten",
    num_classes=10,
    train=ArraySplit(image_of(TRAIN), TRAIN),
    test=ArraySplit(image_of(TEST), TEST),
)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("train", TRAIN),
        ("test", TEST),
        ("train[:3]", [0, 1, 2]),
        ("train[-2:]", [8, 9]),
        ("train[50%:80%]", [5, 6, 7]),
        ("test[3:]+train[:1]", [3, 0]),
    ],
)
def test_a_part_holds_the_examples_of_its_name(name: str, labels: list[int]) -> None:
    data = choose_splits(DATA, SplitNames(name, "test[:1]"))
    np.testing.assert_array_equal(data.train.labels, labels)
    np.testing.assert_array_equal(data.train.images, image_of(np.asarray(labels)))
    np.testing.assert_array_equal(data.test.labels, [0])
    assert (data.name, data.num_classes) == ("ten", 10)


@pytest.mark.parametrize(
    "name", ["validation", "train[:x]", "train[5:70]", "train[", "", "trian+test"]
)
def test_a_part_that_is_not_there_is_refused(name: str) -> None:
    expected = (
        r"ten: split .* set --config\.dataset\.test_split to 'train' \(with 10 "
        r"images\), 'test' \(with 4 images\)"
    )
    with pytest.raises(UserError, match=expected):
        choose_splits(DATA, SplitNames("train", name))


@pytest.mark.parametrize("name", ["train[3:3]", "train[:-10]", "train[:-2000]"])
def test_a_part_without_an_example_is_refused(name: str) -> None:
    expected = r"contains no images; set --config\.dataset\.train_split to"
    with pytest.raises(UserError, match=expected):
        choose_splits(DATA, SplitNames(name))


@pytest.mark.parametrize(
    ("train", "validation", "advice"),
    [
        ("train", "train[-3:]", r"train_split='train\[:-3\]'\."),
        ("train", "train[:3]", r"train_split='train\[3:\]'\."),
        ("train", "train[30%:50%]", r"train_split='train\[:-7\]\+train\[5:\]'\."),
        ("test+train[:5]", "train[4:]", r"train_split='test\+train\[:-6\]'\."),
        ("train[2:4]", "train", "validation_split to images that the run does not"),
    ],
)
def test_images_for_validation_are_not_trained_on(
    train: str, validation: str, advice: str
) -> None:
    names = SplitNames(train, "test", validation)
    with pytest.raises(UserError, match=f"share [1-3] images. Set .*{advice}") as seen:
        choose_splits(DATA, names)
    assert "\n" not in str(seen.value)


@pytest.mark.parametrize("validation", ["train[-3:]", "test", "test[1:]+train[7:]"])
def test_other_images_may_be_for_validation(validation: str) -> None:
    names = SplitNames("train[:-3]", "test", validation)
    assert choose_splits(DATA, names).validation is not None


def test_a_test_on_training_images_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        choose_splits(DATA, SplitNames("train[:-3]", "test"))
        assert not caplog.text
        choose_splits(DATA, SplitNames("train", "train[-3:]"))
    assert "trains on 3 of the images of test_split='train[-3:]'" in caplog.text
