"""Protocols of a data set and its splits, and data sets in memory."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from bn_jax.errors import UserError


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
            uint8 pixels `(*indices, height, width, channels)`, and int32 classes of
            the shape of `indices`.
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
    """A split whose images are in memory.

    Attributes:
        images: uint8 pixels, `(examples, height, width, channels)`.
        labels: int32 classes from 0, `(examples,)`.
    """

    images: np.ndarray
    labels: np.ndarray

    is_in_memory = True
    num_threads = 1

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
        height, width = self.images.shape[1:3]
        raise UserError(
            "--crops: 144 crops need images of varying size, but these are all "
            f"{height}x{width}. Leave the flag out."
        )


class Dataset(Protocol):
    """Images and labels for training and testing."""

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


class StreamedDataset(NamedTuple):
    """A `Dataset` whose splits read an image from disk when a caller needs it."""

    name: str
    num_classes: int
    train: Split
    test: Split


class ArrayDataset(NamedTuple):
    """A `Dataset` whose images and labels are in memory.

    Attributes:
        name: Name of the data set in logs and results.
        train_images: uint8 pixels, `(examples, height, width, channels)`.
        train_labels: int32 classes from 0, `(examples,)`.
        test_images: uint8 pixels, `(examples, height, width, channels)`.
        test_labels: int32 classes from 0, `(examples,)`.
        num_classes: Number of classes.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int

    @property
    def train(self) -> ArraySplit:
        """Split for training."""
        return ArraySplit(self.train_images, self.train_labels)

    @property
    def test(self) -> ArraySplit:
        """Split for testing."""
        return ArraySplit(self.test_images, self.test_labels)


def check_dataset(dataset: ArrayDataset) -> ArrayDataset:
    """Returns the data set after a check that its arrays fit together.

    Raises:
        UserError: If a split is empty, the numbers of its images and labels differ, the
            images of the two splits differ in shape, or a label is not a class.
    """
    pairs = {
        "training": (dataset.train_images, dataset.train_labels),
        "test": (dataset.test_images, dataset.test_labels),
    }
    for split, (images, labels) in pairs.items():
        if len(images) == 0:
            raise UserError(
                f"{dataset.name}: the {split} split contains no images. Are its files "
                "complete?"
            )
        if len(images) != len(labels):
            raise UserError(
                f"{dataset.name}: the {split} split must contain one label for each "
                f"image, but contains {len(images)} images and {len(labels)} labels. "
                "The files do not belong together, or one is incomplete."
            )
        if labels.min() < 0 or labels.max() >= dataset.num_classes:
            raise UserError(
                f"{dataset.name}: the labels of the {split} split must be from 0 to "
                f"{dataset.num_classes - 1}, but are from {labels.min()} to "
                f"{labels.max()}. Is it a split without labels?"
            )
    if dataset.train_images.shape[1:] != dataset.test_images.shape[1:]:
        raise UserError(
            f"{dataset.name}: training and test images must have equal shapes, but "
            f"training images have the shape {dataset.train_images.shape[1:]} and test "
            f"images have the shape {dataset.test_images.shape[1:]}. Do the files "
            "belong together?"
        )
    return dataset
