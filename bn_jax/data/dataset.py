"""What training asks of a data set, and the records that answer."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from bn_jax.errors import UserError


class Split(Protocol):
    """Images and labels, of which any can be read at any time."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    @property
    def is_in_memory(self) -> bool:
        """Whether all images are at hand, at the size that they are read at."""
        ...

    def read(
        self, indices: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of some examples.

        Args:
            indices: Which examples, an array of any shape.
            positions: The place of each among all that a run reads, of the same
                shape; whatever is random about an image depends on it alone.

        Returns:
            uint8 pixels `(*indices, height, width, channels)` and int32 classes of
            the shape of the indices.
        """
        ...

    def all_crops(self) -> "Split":
        """The same examples, with the 144 crops of each image in its place.

        See `bn_jax.data.imagenet.crops.all_crops`; pixels have the shape
        `(*indices, 144, height, width, channels)`.

        Raises:
            UserError: If there is no more of an image than what `read` gives.
        """
        ...


@dataclass(frozen=True)
class ArraySplit:
    """A split that lies in memory.

    Attributes:
        images: uint8 pixels, `(examples, height, width, channels)`.
        labels: int32 classes from 0, `(examples,)`.
    """

    images: np.ndarray
    labels: np.ndarray

    is_in_memory = True

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def read(
        self, indices: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of some examples; see `Split`."""
        return self.images[indices], self.labels[indices]

    def all_crops(self) -> Split:
        """Refuses; see `Split`."""
        height, width = self.images.shape[1:3]
        raise UserError(
            "--crops: 144 crops are cut from images of varying size; these are all "
            f"{height}x{width}. Leave it out."
        )


class Dataset(Protocol):
    """Images and labels for training and for testing."""

    @property
    def name(self) -> str:
        """What the data set is called in logs and results."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes that labels tell apart."""
        ...

    @property
    def train(self) -> Split:
        """What to train on."""
        ...

    @property
    def test(self) -> Split:
        """What to test on."""
        ...


class StreamedDataset(NamedTuple):
    """Images that are read when they are asked for; see `Dataset`."""

    name: str
    num_classes: int
    train: Split
    test: Split


class ArrayDataset(NamedTuple):
    """Images and labels that lie in memory.

    Attributes:
        name: What the data set is called in logs and results.
        train_images: uint8 pixels, `(examples, height, width, channels)`.
        train_labels: int32 classes from 0, `(examples,)`.
        test_images: As for training.
        test_labels: As for training.
        num_classes: Number of classes that labels tell apart.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int

    @property
    def train(self) -> ArraySplit:
        """What to train on."""
        return ArraySplit(self.train_images, self.train_labels)

    @property
    def test(self) -> ArraySplit:
        """What to test on."""
        return ArraySplit(self.test_images, self.test_labels)


def check_dataset(dataset: ArrayDataset) -> ArrayDataset:
    """The data set itself, once its arrays are known to fit each other.

    Raises:
        UserError: If a split is empty, images and labels differ in number, images
            of the two splits differ in shape, or a label is no class.
    """
    pairs = {
        "training": (dataset.train_images, dataset.train_labels),
        "test": (dataset.test_images, dataset.test_labels),
    }
    for split, (images, labels) in pairs.items():
        if len(images) == 0:
            raise UserError(f"{dataset.name}: the {split} split holds no image.")
        if len(images) != len(labels):
            raise UserError(
                f"{dataset.name}: the {split} split must hold one label an image, and "
                f"holds {len(images)} images and {len(labels)} labels; the files do "
                "not belong together, or one is incomplete."
            )
        if labels.min() < 0 or labels.max() >= dataset.num_classes:
            raise UserError(
                f"{dataset.name}: labels of the {split} split must lie in 0 to "
                f"{dataset.num_classes - 1}, and lie in {labels.min()} to "
                f"{labels.max()}."
            )
    if dataset.train_images.shape[1:] != dataset.test_images.shape[1:]:
        raise UserError(
            f"{dataset.name}: training images of shape {dataset.train_images.shape[1:]}"
            f" and test images of shape {dataset.test_images.shape[1:]} differ."
        )
    return dataset
