"""Data that a user's function returns, and the line that refuses what does not fit."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import own_data

from bn_jax.data import load_dataset
from bn_jax.errors import UserError

X, Y = own_data.points(6)
GOOD = {"train": (X, Y), "test": (X[:2], Y[:2])}

Load = Callable[..., Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads what a function returns, as if it were in a module of the user."""

    def load_returned(returned: Any, **settings: Any) -> Any:
        function = returned if callable(returned) else lambda: returned
        monkeypatch.setattr(own_data, "function", function, raising=False)
        return load_dataset("data.own_data:function", **settings)

    return load_returned


def read_all(split: Any) -> tuple[np.ndarray, np.ndarray]:
    indices = np.arange(len(split))
    return split.read(indices, indices)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int32", "bool"])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (4, 5, 3), ()])
def test_arrays_of_any_numbers_and_shape_come_back_as_they_are(
    load: Load, dtype: str, shape: tuple[int, ...]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, *shape)).astype(dtype)
    data = load({"train": (images, Y), "test": (images[:2], Y[:2])})
    assert (data.name, data.num_classes) == ("data.own_data:function", 3)
    assert data.train.is_in_memory
    assert data.validation is None
    read, labels = read_all(data.train)
    assert (read.dtype, labels.dtype) == (images.dtype, np.int32)
    np.testing.assert_array_equal(read, images)
    np.testing.assert_array_equal(labels, Y)


def test_a_validation_split_is_used_if_it_is_returned(load: Load) -> None:
    data = load(own_data.in_memory)
    np.testing.assert_equal(read_all(data.validation), own_data.points(17, first=100))
    np.testing.assert_equal(read_all(data.test), own_data.points(20, first=200))


@pytest.mark.parametrize("function", [own_data.without_validation, own_data.on_request])
def test_a_slice_of_the_training_split_may_be_the_validation_split(
    load: Load, function: Any
) -> None:
    data = load(function, train_split="train[:-9]", validation_split="train[-9:]")
    np.testing.assert_equal(read_all(data.train), own_data.points(81))
    np.testing.assert_equal(read_all(data.validation), own_data.points(9, first=81))


@pytest.mark.parametrize("function", [own_data.in_memory, own_data.on_request])
def test_splits_may_be_joined(load: Load, function: Any) -> None:
    data = load(function, train_split="test[:3]+train")
    expected = zip(own_data.points(3, first=200), own_data.points(90), strict=True)
    expected = tuple(np.concatenate(pair) for pair in expected)
    np.testing.assert_equal(read_all(data.train), expected)


def test_objects_are_read_as_they_are_asked_for(load: Load) -> None:
    train = own_data.Points(90)
    data = load({**own_data.on_request(), "train": train})
    assert train.read == [0]
    assert not data.train.is_in_memory
    indices = np.array([[5, 3], [80, 5]])
    images, labels = data.train.read(indices, indices)
    assert train.read == [0, 5, 3, 80, 5]
    expected = own_data.points(90)
    np.testing.assert_array_equal(images, expected[0][indices])
    np.testing.assert_array_equal(labels, expected[1][indices])


@pytest.mark.parametrize("threads", [None, 3])
def test_a_pair_of_objects_is_read_by_one_or_several_threads(
    load: Load, threads: int | None
) -> None:
    pair = (list(X), Y.tolist())
    data = load({**GOOD, "train": pair}, read_threads=threads)
    assert data.num_classes == 3
    np.testing.assert_equal(read_all(data.train), (X, Y))


def test_an_array_in_a_file_is_not_loaded(load: Load, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    images = np.load(tmp_path / "x.npy", mmap_mode="r")
    data = load(
        {"train": (images, Y), "test": (images, Y)},
        train_split="train[:2]+train[3:]",
        test_split="test[1:]",
    )
    assert not data.train.is_in_memory
    np.testing.assert_equal(read_all(data.train), (np.delete(X, 2, 0), np.delete(Y, 2)))
    assert isinstance(data.test.images, np.memmap)
    np.testing.assert_equal(read_all(data.test), (X[1:], Y[1:]))


def test_the_number_of_classes_may_be_returned(load: Load) -> None:
    assert load({**GOOD, "num_classes": 7}).num_classes == 7


def test_values_that_are_not_finite_are_warned_of(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    images = X.copy()
    images[4, 1] = np.nan
    with caplog.at_level(logging.WARNING):
        load({**GOOD, "train": (images, Y)})
    assert "split 'train' contains NaN or infinity, first in image 4" in caplog.text


def fails() -> None:
    raise KeyError("no file")


BAD_RETURNS = [
    (fails, r"function failed; KeyError: 'no file' \(.*test_function\.py, line \d+\)"),
    (lambda x: x, r"must take no arguments \(missing a required argument: 'x'\)"),
    ([X, Y], r'must return \{"train": .* it returned a list'),
    (lambda: None, "it returned a NoneType"),
    ({"train": (X, Y)}, r"it returned the keys \['train'\]"),
    ({**GOOD, "valid": (X, Y)}, r"returned the keys \['test', 'train', 'valid'\]"),
    ({**GOOD, "num_classes": 2}, r"from 0 to 1, because .* the highest is 2"),
    ({**GOOD, "num_classes": "3"}, r'"num_classes" must be an integer .* is \'3\''),
    ({**GOOD, "test": own_data.Points(3)}, r'must return "num_classes" too'),
]


@pytest.mark.parametrize(("returned", "expected"), BAD_RETURNS)
def test_another_result_of_the_function_is_refused(
    load: Load, returned: Any, expected: str
) -> None:
    with pytest.raises(UserError, match=expected) as seen:
        load(returned)
    assert "\n" not in str(seen.value)


BAD_SPLITS = [
    (X, r"must be a pair \(images, labels\) .* but is of ndarray"),
    ((X, Y, Y), r"example 0 must be a pair"),
    ((X, 3), r"must be a pair .* is of ndarray, int"),
    ("ab", r"must be a pair .* is of str"),
    ((X, Y[:5]), r"one label for each image, but has 6 images and 5 labels"),
    ((X[:0], Y[:0]), r"contains no images"),
    ((X, Y - 1), r"counted from 0, but are from -1 to 1"),
    ((X, Y.astype(float)), r"labels must be integers .* dtype float64"),
    ((X, Y == 1), r"labels must be integers .* dtype bool"),
    ((X, Y[:, None]), r"labels must be .* one axis, .* shape \(6, 1\)"),
    ((X, Y + 2**40), r"counted from 0, but are from 1099511627776"),
    ((X, Y + 100), r"the highest is 102, and there are only 8 examples"),
    ((X, [None] * 6), r"labels must be integers .* dtype object"),
    ((X[:, :4], Y), r"one shape and dtype, but .* \(4,\) \(float32\) .* \(5,\)"),
    ((X.astype("f8"), Y), r"one shape and dtype, .* \(float64\) .* \(float32\)"),
    ((X.astype(str), Y), r"images must be numbers, .* dtype <U"),
    ((X.astype(complex), Y), r"images must be numbers, .* dtype complex128"),
]


@pytest.mark.parametrize(("split", "expected"), BAD_SPLITS)
def test_images_and_labels_that_do_not_fit_are_refused(
    load: Load, split: Any, expected: str
) -> None:
    with pytest.raises(UserError, match=f"own_data:function.*{expected}") as seen:
        load({**GOOD, "train": split})
    assert "\n" not in str(seen.value)


def test_a_name_that_is_no_function_is_refused() -> None:
    with pytest.raises(UserError, match="must be a function, but has the type int"):
        load_dataset("data.own_data:NUM_CLASSES")


def test_images_that_are_ready_are_not_resized(load: Load) -> None:
    with pytest.raises(UserError, match="image_size=8 needs images of varying size"):
        load(GOOD, image_size=8)


class Odd(own_data.Points):
    """Points of which the last is another one."""

    def __init__(self, last: Any) -> None:
        super().__init__(4)
        self.last = last

    def __getitem__(self, index: int) -> Any:
        if index < 3:
            return super().__getitem__(index)
        return self.last() if callable(self.last) else self.last


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (fails, r"example 3 .* KeyError: 'no file' \(.*test_function\.py, line"),
        ((X[0, :4], 0), r"image 3 has the shape \(4,\) .* training image has \(5,\)"),
        ((X[0].astype("f8"), 0), r"image 3 has .* \(float64\), .* \(float32\)"),
        ((X[0], 3), r"labels must be from 0 to 2, .* of example 3 is 3"),
        ((X[0], -1), r"labels must be from 0 to 2, .* of example 3 is -1"),
        ((X[0], 0.5), r"example 3 must be a pair of an array and an integer label"),
        (X[0], r"example 3 must be a pair"),
    ],
)
def test_an_example_that_differs_is_refused_when_it_is_read(
    load: Load, last: Any, expected: str, threads: int
) -> None:
    splits = {"train": Odd(last), "test": (X, Y), "num_classes": 3}
    split = load(splits, read_threads=threads).train
    with pytest.raises(UserError, match=f"split 'train': {expected}"):
        read_all(split)


def test_objects_have_no_crops(load: Load) -> None:
    with pytest.raises(UserError, match=r"--crops: .* Leave the flag out"):
        load(own_data.on_request).test.all_crops()
