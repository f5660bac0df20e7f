"""Data sets and their splits, of which some are in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar

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


S = TypeVar("S", bound=Split)


class Dataset(NamedTuple, Generic[S]):
    """Images and labels for training, validation and testing.

    Attributes:
        name: Name of the data set in logs and results.
        num_classes: Number of classes.
        train: Split for training.
        test: Split for testing.
        validation: Split for evaluations during training; None if the test split is
            used.
    """

    name: str
    num_classes: int
    train: S
    test: S
    validation: S | None = None


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


def check_dataset(dataset: Dataset[ArraySplit]) -> Dataset[ArraySplit]:
    """Returns the data set after a check that its arrays fit together.

    Raises:
        UserError: If a split is empty, the numbers of its images and labels differ, the
            images of two splits differ in shape or dtype, or a label is not a class.
    """
    splits = {"train": dataset.train, "test": dataset.test}
    if dataset.validation is not None:
        splits["validation"] = dataset.validation
    for name, split in splits.items():
        where, labels = f"{dataset.name}: split {name!r}", split.labels
        check_sizes(where, len(split.images), len(labels))
        if labels.min() < 0 or labels.max() >= dataset.num_classes:
            raise UserError(
                f"{where}: labels must be from 0 to {dataset.num_classes - 1}, but are "
                f"from {labels.min()} to {labels.max()}. Is it a split without labels?"
            )
    first_images = {name: split.images[0] for name, split in splits.items()}
    check_same_shape(dataset.name, first_images)
    return dataset


def check_sizes(where: str, num_images: int, num_labels: int) -> None:
    """Checks that a split has images, and one label for each.

    Args:
        where: Data set and split, for errors.
        num_images: Number of images.
        num_labels: Number of labels.

    Raises:
        UserError: If there are no images, or the numbers differ.
    """
    if num_images != num_labels:
        raise UserError(
            f"{where} must have one label for each image, but has {num_images} images "
            f"and {num_labels} labels. Do they belong together?"
        )
    if num_images == 0:
        raise UserError(f"{where} contains no images. Is it complete?")


def check_same_shape(name: str, images: Mapping[str, np.ndarray]) -> None:
    """Checks that the images of all splits have one shape and dtype.

    Args:
        name: Name of the data set, for errors.
        images: An image of each split, among them "train".

    Raises:
        UserError: If two differ.
    """
    first = images["train"]
    for split, image in images.items():
        if (image.shape, image.dtype) != (first.shape, first.dtype):
            raise UserError(
                f"{name}: images of all splits must have one shape and dtype, but those"
                f" of 'train' have {first.shape} ({first.dtype}) and those of {split!r}"
                f" have {image.shape} ({image.dtype}). Do they belong together?"
            )
