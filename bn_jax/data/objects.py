"""Splits that read examples from a user's objects when a caller needs them."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bn_jax.data.dataset import Split
from bn_jax.data.threads import Threads
from bn_jax.errors import UserError
from bn_jax.user_code import describe_error


class Example(NamedTuple):
    """An image, an array of numbers of any shape, and its class."""

    image: np.ndarray
    label: int


class Pairs(Sequence[Any]):
    """Sequence of pairs (image, label), from a sequence of each."""

    def __init__(self, images: Any, labels: Any) -> None:
        """Stores the two sequences.

        Args:
            images: Images, read one at a time.
            labels: Labels, as many as images.
        """
        self._images = images
        self._labels = labels

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        """Returns an image and its label."""
        return self._images[index], self._labels[index]


def read_example(examples: Sequence[Any], index: int, *, where: str) -> Example:
    """Returns one example as an array and an integer.

    Args:
        examples: Sequence of pairs (image, label).
        index: Index of the example.
        where: Data set and split, for errors.

    Raises:
        UserError: If the example cannot be read, is not a pair, or does not consist of
            numbers and a label of at least 0.
    """
    try:
        image, label = examples[index]
        example = Example(np.asarray(image), operator.index(label))
    except Exception as error:
        # The object's `__getitem__` is the user's own code.
        raise UserError(
            f"{where}: example {index} must be a pair of an array and an integer label,"
            f" but cannot be read so; {describe_error(error)}"
        ) from error
    if example.image.dtype.kind not in "biuf":
        raise UserError(
            f"{where}: images must be numbers, but image {index} has the dtype "
            f"{example.image.dtype}. Convert it to float32 or uint8."
        )
    return example


class ObjectSplit:
    """A `Split` over a sequence of pairs (image, label)."""

    is_in_memory = False

    def __init__(
        self,
        examples: Sequence[Any],
        *,
        where: str,
        like: np.ndarray,
        num_classes: int,
        num_threads: int,
    ) -> None:
        """Stores the sequence.

        Args:
            examples: Pairs (image, label).
            where: Data set and split, for errors.
            like: An image with the shape and dtype of all images.
            num_classes: Number of classes.
            num_threads: Threads that read; one is the thread of the caller.
        """
        self.num_threads = num_threads
        self._examples = examples
        self._where = where
        self._like = like
        self._num_classes = num_classes
        self._threads = Threads(num_threads)

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._examples)

    def read(
        self, indices: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and labels of some examples.

        Raises:
            UserError: If an example cannot be read, differs from the first one in shape
                or dtype, or its label is not a class.
        """
        images = np.empty((indices.size, *self._like.shape), self._like.dtype)
        labels = np.empty(indices.size, np.int32)

        def read_one(place: int, index: int) -> None:
            image, label = self._read_example(index)
            images[place], labels[place] = image, label

        self._threads.for_each(read_one, enumerate(indices.ravel().tolist()))
        return (
            images.reshape(*indices.shape, *self._like.shape),
            labels.reshape(indices.shape),
        )

    def all_crops(self) -> Split:
        """Raises UserError, because the user's objects return images of one size."""
        raise UserError(
            "--crops: 144 crops need images that bn_jax crops, but these come from "
            f"{self._where}. Leave the flag out."
        )

    def _read_example(self, index: int) -> Example:
        example = read_example(self._examples, index, where=self._where)
        image, like = example.image, self._like
        if (image.shape, image.dtype) != (like.shape, like.dtype):
            raise UserError(
                f"{self._where}: image {index} has the shape {image.shape} "
                f"({image.dtype}), but the first training image has {like.shape} "
                f"({like.dtype}). Give all images one shape and dtype."
            )
        if not 0 <= example.label < self._num_classes:
            raise UserError(
                f"{self._where}: labels must be from 0 to {self._num_classes - 1}, but "
                f"the label of example {index} is {example.label}."
            )
        return example
