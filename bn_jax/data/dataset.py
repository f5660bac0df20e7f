"""Protocols of a data set and its splits, and data sets in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
from absl import logging

from bn_jax.errors import UserError

# Limit of a split in memory. Stacking its images needs twice this on the host, and the
# device holds one more copy of the examples of an evaluation.
MAX_BYTES_IN_MEMORY = 4 * 2**30


class Split(Protocol):
    """Images and labels with random access."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    @property
    def is_in_memory(self) -> bool:
        """True if all images are in memory, at the size that `read` returns."""
        ...

    @property
    def num_threads(self) -> int:
        """Number of threads that read and decode images."""
        ...

    def read(
        self, indices: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and labels of some examples.

        Args:
            indices: Indices of the examples, an array of any shape.
            positions: Position of each example among all that the run reads, an array
                of the shape of `indices`. Random changes of an image depend on its
                position and the seed only.

        Returns:
            Images `(*indices, ...)`, which are uint8 pixels `(*indices, height, width,
            channels)` except in a user's own data, and int32 classes of the shape of
            `indices`.
        """
        ...

    def all_crops(self) -> "Split":
        """Returns a split that reads 144 crops of each image instead of the image.

        `bn_jax.data.imagenet.crops.all_crops` defines the crops. Pixels have the shape
        `(*indices, 144, height, width, channels)`.

        Raises:
            UserError: If images are stored only at the size that `read` returns.
        """
        ...


@dataclass(frozen=True)
class ArraySplit:
    """A split whose images are an array.

    Attributes:
        images: uint8 pixels, `(examples, height, width, channels)`, or numbers of any
            other shape and dtype.
        labels: int32 classes from 0, `(examples,)`.
    """

    images: np.ndarray
    labels: np.ndarray

    num_threads = 1

    @property
    def is_in_memory(self) -> bool:
        """False for an array that lies in a file, or has more than 4 GiB."""
        is_in_file = isinstance(self.images, np.memmap)
        return not is_in_file and self.images.nbytes <= MAX_BYTES_IN_MEMORY

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.labels)

    def read(
        self, indices: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and labels of some examples, unchanged."""
        return self.images[indices], self.labels[indices]

    def all_crops(self) -> Split:
        """Raises UserError, because crops need images of varying size."""
        size = "x".join(map(str, self.images.shape[1:3]))
        raise UserError(
            "--crops: 144 crops need images of varying size, but these are all "
            f"{size}. Leave the flag out."
        )


class Dataset(Protocol):
    """Images and labels for training, validation and testing."""

    @property
    def name(self) -> str:
        """Name of the data set in logs and results."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def train(self) -> Split:
        """Split for training."""
        ...

    @property
    def test(self) -> Split:
        """Split for testing."""
        ...

    @property
    def validation(self) -> Split | None:
        """Split for evaluations during training; None if the test split is used."""
        ...


class StreamedDataset(NamedTuple):
    """A `Dataset` whose splits read an image from disk when a caller needs it."""

    name: str
    num_classes: int
    train: Split
    test: Split
    validation: Split | None = None


class ArrayDataset(NamedTuple):
    """A `Dataset` whose images and labels are in memory.

    Attributes:
        name: Name of the data set in logs and results.
        train_images: uint8 pixels, `(examples, height, width, channels)`, or numbers of
            any other shape and dtype.
        train_labels: int32 classes from 0, `(examples,)`.
        test_images: Images like those for training.
        test_labels: int32 classes from 0, `(examples,)`.
        num_classes: Number of classes.
        validation: Split for evaluations during training, if there is one.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    validation: ArraySplit | None = None

    @property
    def train(self) -> ArraySplit:
        """Split for training."""
        return ArraySplit(self.train_images, self.train_labels)

    @property
    def test(self) -> ArraySplit:
        """Split for testing."""
        return ArraySplit(self.test_images, self.test_labels)


def join_splits(
    name: str, num_classes: int, splits: Mapping[str, ArraySplit]
) -> ArrayDataset:
    """Returns the data set of some splits after a check that they fit together.

    Args:
        name: Name of the data set.
        num_classes: Number of classes.
        splits: The splits "train", "test" and, if there is one, "validation".

    Raises:
        UserError: As `check_dataset` does.
    """
    train, test = splits["train"], splits["test"]
    return check_dataset(
        ArrayDataset(
            name,
            train_images=train.images,
            train_labels=train.labels,
            test_images=test.images,
            test_labels=test.labels,
            num_classes=num_classes,
            validation=splits.get("validation"),
        )
    )


def evaluated_split(data: Dataset) -> tuple[str, Split]:
    """Returns the split that evaluations during training use, and its name in metrics.

    Args:
        data: The data set.
    """
    if data.validation is None:
        return "test", data.test
    return "validation", data.validation


def count_classes(name: str, labels: np.ndarray) -> int:
    """Returns 1 plus the highest label, and warns of classes without an example.

    Args:
        name: Name of the data set in the warning.
        labels: Labels of all splits, at least 0.
    """
    present = set(np.unique(labels).tolist())
    num_classes = 1 + max(present, default=0)
    if len(present) < num_classes:
        absent = (label for label in range(num_classes) if label not in present)
        num_missing = num_classes - len(present)
        logging.warning(
            "%s: labels are from 0 to %d, but %d of these classes have no image: %s.",
            name,
            num_classes - 1,
            num_missing,
            ", ".join(map(str, islice(absent, 5)))
            + (", ..." if num_missing > 5 else ""),
        )
    return num_classes


def check_dataset(dataset: ArrayDataset) -> ArrayDataset:
    """Returns the data set after a check that its arrays fit together.

    Raises:
        UserError: If a split is empty, the numbers of its images and labels differ, the
            images of two splits differ in shape or dtype, or a label is not a class.
    """
    splits = {"training": dataset.train, "test": dataset.test}
    if dataset.validation is not None:
        splits["validation"] = dataset.validation
    for name, split in splits.items():
        _check_split(dataset, name, split)
    return dataset


def _check_split(dataset: ArrayDataset, name: str, split: ArraySplit) -> None:
    images, labels = split.images, split.labels
    if len(images) == 0:
        raise UserError(
            f"{dataset.name}: the {name} split contains no images. Are its files "
            "complete?"
        )
    if len(images) != len(labels):
        raise UserError(
            f"{dataset.name}: the {name} split must contain one label for each image, "
            f"but contains {len(images)} images and {len(labels)} labels. Do they "
            "belong together, and are they complete?"
        )
    if labels.min() < 0 or labels.max() >= dataset.num_classes:
        raise UserError(
            f"{dataset.name}: the labels of the {name} split must be from 0 to "
            f"{dataset.num_classes - 1}, but are from {labels.min()} to {labels.max()}."
            " Is it a split without labels?"
        )
    train = dataset.train_images
    if (images.shape[1:], images.dtype) != (train.shape[1:], train.dtype):
        raise UserError(
            f"{dataset.name}: all images must have one shape and dtype, but training "
            f"images have the shape {train.shape[1:]} ({train.dtype}) and {name} "
            f"images have the shape {images.shape[1:]} ({images.dtype}). Do they belong"
            " together?"
        )
